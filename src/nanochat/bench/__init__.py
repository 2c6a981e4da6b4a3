"""How fast this machine trains, generates and prepares data, without any fetched data."""
