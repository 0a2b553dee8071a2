"""The call store: every answer in one database, shared by threads, processes and machines."""
