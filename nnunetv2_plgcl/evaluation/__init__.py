"""What comes after prediction."""
