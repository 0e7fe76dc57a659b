"""What growing is measured against."""
