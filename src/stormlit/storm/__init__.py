"""The method: the world model, the agent, imagination, and the loop that alternates them (STORM, Zhang et al. 2023)."""
