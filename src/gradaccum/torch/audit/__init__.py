"""Does a training loop do what the big batch would? Watched from outside, unchanged.

weights         from a backward pass's root: the weight of every token
sketch          gradients as sixteen numbers
watcher         follows a running loop; one record for each rank
records         that record, as plain data
arrivals        what became of each pass's gradient on its way to the optimizer
normalisation   are all weights equal, and do they sum to one
judge           from the ranks' records to a report
findings        the words of each verdict
facts           what an update really was
"""
