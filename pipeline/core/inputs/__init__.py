"""What a row of data may hold."""
