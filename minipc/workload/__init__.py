"""The reference workload from the controller's side: its image, made without any registry."""
