"""What a program is: values, types, operations, text."""
