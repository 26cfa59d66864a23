"""The report of a run or checkpoint: facts about it, and the page that shows them."""
