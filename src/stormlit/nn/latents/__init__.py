"""What a frame is compressed into."""
