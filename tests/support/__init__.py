"""What several tests share: data and networks to try, a hub on loopback, readers of what was made."""
