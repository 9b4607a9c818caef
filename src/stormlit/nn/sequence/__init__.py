"""What reads latents and actions in order."""
