"""The consumer: positions, transactions, groups, failures, waiting, crashes."""
