"""The command ``messagedb``, as it is installed, in processes of its own."""
