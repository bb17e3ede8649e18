"""The methods that Client and AsyncClient have; the awaited ones are generated."""
