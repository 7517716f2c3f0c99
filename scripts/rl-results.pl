#!/usr/bin/env perl
# Prints a row of the book's table of results for each folder of a finished `t3c train`, and their means.
# Arguments: the folders.
use strict;
use warnings;
use JSON::PP qw(decode_json);

@ARGV or die "usage: rl-results.pl FOLDER…\n";
my (@sums, $runs);

print "| run | accuracy, greedy | accuracy, temperature 1 | calls beyond the plan | `cannot` where answerable | minutes |\n";
print "|---|---|---|---|---|---|\n";
for my $folder (@ARGV) {
    open my $in, '<', "$folder/metrics.jsonl" or die "error: $folder/metrics.jsonl: $!\n";
    my (%first, %last, $seconds);
    while (my $line = <$in>) {
        my $event = decode_json($line);
        $seconds += $event->{$_} // 0 for qw(seconds rollout_seconds train_seconds);
        next if $event->{event} ne 'evaluated';
        my $sampling = $event->{temperature} > 0 ? 'sampled' : 'greedy';
        # The start is the last look before reinforcement learning begins.
        $first{$sampling} = $event if $event->{rl_steps} == 0;
        $last{$sampling} = $event;
    }
    for my $sampling (qw(greedy sampled)) {
        $first{$sampling} && $last{$sampling}{rl_steps} > 0
            or die "error: $folder: no evaluation ($sampling) before and after reinforcement learning\n";
    }
    my @values = (
        map({ 100 * $_->{greedy}{accuracy} } \%first, \%last),
        map({ 100 * $_->{sampled}{accuracy} } \%first, \%last),
        map({ $_->{greedy}{extra_calls} } \%first, \%last),
        map({ 100 * $_->{greedy}{cannot} } \%first, \%last),
        $seconds / 60,
    );
    row($folder =~ s{.*/}{}r, @values);
    $sums[$_] += $values[$_] for 0 .. $#values;
    $runs++;
}
row('mean', map { $_ / $runs } @sums) if $runs > 1;

sub row {
    my ($name, @values) = @_;
    printf "| %s | %.1f %% → %.1f %% | %.1f %% → %.1f %% | %.2f → %.2f | %.1f %% → %.1f %% | %.1f |\n", $name, @values;
}
