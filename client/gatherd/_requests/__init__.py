"""What is asked, checked before anything is sent."""
