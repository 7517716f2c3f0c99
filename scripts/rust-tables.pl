#!/usr/bin/env perl
# Prints Markdown tables from doc comments in Rust sources.
#   rust-tables.pl fields FILE NAME…    a table of the fields of each struct
#   rust-tables.pl declines FILE        the reasons of `Decline`: id, meaning, message, what to try
use strict;
use warnings;

my ($mode, $file, @names) = @ARGV;
defined $file or die "usage: rust-tables.pl fields|declines FILE [NAME…]\n";
open my $in, '<:encoding(UTF-8)', $file or die "error: $file: $!\n";
my $source = do { local $/; <$in> };
binmode STDOUT, ':encoding(UTF-8)';

sub prose {
    my ($comment) = @_;
    my @lines = map { s{^\s*/// ?}{}r } grep { m{^\s*///} } split /\n/, $comment // '';
    my $text = join ' ', @lines;
    $text =~ s/\[(`[^`]+`)\](\([^)]*\))?/$1/g;    # links between items of the crate
    $text =~ s/\|/\\|/g;
    my $inside = 1;
    return join '`', map { $inside = !$inside; $inside ? $_ : s/</&lt;/gr } split /`/, $text, -1;
}

my $doc = qr{((?:^[ \t]*///[^\n]*\n)+)}m;
my $attributes = qr{((?:^[ \t]*\#\[[^\n]*\n(?:(?![ \t]*(?:pub|[A-Z])).*\n)*)*)}m;

if ($mode eq 'fields') {
    for my $name (@names) {
        $source =~ /$doc(?:^\#\[[^\n]*\n)*^pub struct $name \{\n(.*?)^\}/ms
            or die "error: $file: no documented struct `$name`\n";
        my ($comment, $body) = ($1, $2);
        printf "\n## %s\n\n%s\n\n| key | meaning |\n|---|---|\n", $name, prose($comment);
        while ($body =~ /$doc((?:^[ \t]*\#\[[^\n]*\n)*)^    pub (\w+): ([^\n]+),$/mg) {
            my ($meaning, $attribute, $key, $type) = ($1, $2, $3, $4);
            if ($attribute =~ /flatten/) {
                printf "| *the keys of %s* | %s |\n", $type, prose($meaning);
            } else {
                printf "| `%s` | %s |\n", $key, prose($meaning);
            }
        }
    }
} elsif ($mode eq 'declines') {
    my ($enum) = $source =~ /^pub enum Decline \{\n(.*?)^\}/ms or die "error: $file: no enum `Decline`\n";
    my ($suggestions) = $source =~ /fn suggestion\(.*?\{\n(.*?)^    \}/ms;
    my $count = 0;
    while ($enum =~ /$doc$attributes^    (\w+)(?: \{|,)/mg) {
        my ($meaning, $attribute, $variant) = ($1, $2, $3);
        my ($id) = $source =~ /Decline::$variant(?: \{ \.\. \})? => "([a-z-]+)"/
            or die "error: $file: `$variant` has no id\n";
        my ($message) = $attribute =~ /"((?:[^"\\]|\\.)*)"/;
        my $try = '';
        $try = $1 if $suggestions =~ /Decline::$variant\b(?:(?!=>).)*=>\s*\{?\s*Some\("([^"]+)"\)/s;
        printf "\n## %s\n\n%s\n\n", $id, prose($meaning);
        printf "- Message: `%s`\n", ($message =~ s/\{(\w+)[^}]*\}/<$1>/gr);
        printf "- What to try: %s\n", $try =~ s/(--\S+ \S+)/`$1`/gr if $try;
        $count++;
    }
    $count or die "error: $file: no reasons found\n";
} else {
    die "usage: rust-tables.pl fields|declines FILE [NAME…]\n";
}
