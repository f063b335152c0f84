"""Many cases through one bundle: read ahead, written behind, resumable, on this machine or a cluster."""
