"""Gates by Monte-Carlo: many rollouts of good and harmful candidates over simulated fleets."""
