"""What looks at a trained model: evaluation, dreams, diagnosis, and their pictures."""
