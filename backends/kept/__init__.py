"""What the ledger keeps: which entry is a line's, and where requests were handed over."""
