"""What lies in resources/, who needs it, whether it is sound, and how it travels to a machine without internet. No torch."""
