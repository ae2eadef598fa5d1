"""What ringc is compared with: the same models as they are written without it."""
