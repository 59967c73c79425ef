"""Where a deployment's router runs: on this machine, on SkyServe's controller, on a VM of its own, or anywhere."""
