"""The blocks of the sessions on a replica: whose is next, its passes, and its way to the viewers."""
