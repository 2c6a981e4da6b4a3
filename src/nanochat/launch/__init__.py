"""How a stage that trains is run: its ranks, on one machine or several, below a supervisor that lets nothing hang in silence."""
