"""Does a training loop do what the big batch would? Watched from outside, unchanged.

weights         from a backward pass's root: the weight of every token
sketch          gradients as sixteen numbers
watcher         follows a running loop; underway is the group that is open, where says who calls
records         what one rank saw, as plain data
arrivals        what became of each pass's gradient on its way to the optimizer
normalisation   are all weights equal, and do they sum to one
groups          one update as all ranks saw it
within, across  verdicts on one update, and on all together; findings has their words
judge           from the ranks' records to a report; facts is what an update really was
watch           the door for a loop of one's own
run, command    the door for a script or any command: started from outside, judged from its records
enter, session  the same inside its processes: entered at their start, ended once enough was seen
verify          one update as one batch and as micro-batches, on copies
causes          why the two differ
handed_in       what verify takes
repro           each fault as a script of its own
"""
