"""What a pull request runs and what shows its result; the privileged jobs run main's copy."""
