"""The ledger: answers that were paid for, kept the moment they arrive."""
