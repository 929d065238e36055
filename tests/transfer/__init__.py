"""Exports, imports, copies and comparisons of stores."""
