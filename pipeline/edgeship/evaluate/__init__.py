"""What an artifact lost against the float model it was made from, and what a recipe accepts of that."""
