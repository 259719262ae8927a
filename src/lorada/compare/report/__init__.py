"""What a comparison's report says, and how."""
