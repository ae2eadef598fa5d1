"""What the compiler is tested against: the model family written plainly in PyTorch, with none of ringc's code."""
