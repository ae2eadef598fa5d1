"""What ringc is compared with: the same models as one writes them in PyTorch, without ringc."""
