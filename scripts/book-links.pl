#!/usr/bin/env perl
# Checks the links inside the Markdown files below a folder: files exist, anchors are headings, and every page
# is in SUMMARY.md. Links to other sites are not followed.
use strict;
use warnings;
use File::Basename qw(dirname);
use File::Find qw(find);
use File::Spec::Functions qw(canonpath catfile);

my $root = shift // die "usage: book-links.pl FOLDER\n";
my (@pages, %anchors, %listed, $broken);
find({ wanted => sub { push @pages, canonpath($File::Find::name) if /\.md$/ }, no_chdir => 1 }, $root);

sub text {
    my ($file) = @_;
    open my $in, '<:encoding(UTF-8)', $file or die "error: $file: $!\n";
    my $text = do { local $/; <$in> };
    $text =~ s/^(```|~~~).*?^\1\s*$//msg;    # code is no prose
    return $text;
}

for my $page (@pages) {
    my $text = text($page);
    while ($text =~ /^#+\s+(.*?)\s*$/mg) {
        my $anchor = lc $1;
        $anchor =~ s/[^\w\s-]//g;
        $anchor =~ s/\s/-/g;
        $anchors{$page}{$anchor}++;
    }
    $anchors{$page}{$1}++ while $text =~ /<a (?:id|name)="([^"]+)"/g;
}
for my $page (@pages) {
    my $text = text($page);
    $text =~ s/`[^`\n]*`//g;
    while ($text =~ /\]\(([^)\s]+)\)/g) {
        my $link = $1;
        next if $link =~ /^[a-z]+:/;
        my ($path, $anchor) = split /#/, $link, 2;
        my $target = $path eq '' ? $page : canonpath(catfile(dirname($page), $path));
        1 while $target =~ s{[^/]+/\.\./}{};
        $listed{$target} = 1 if $page =~ /SUMMARY\.md$/;
        if (!-e $target) {
            print STDERR "error: $page: link to $link: no such file\n";
            $broken = 1;
        } elsif (defined $anchor && $target =~ /\.md$/ && !$anchors{$target}{$anchor}) {
            print STDERR "error: $page: link to $link: no such heading\n";
            $broken = 1;
        }
    }
}
for my $page (grep { !/SUMMARY\.md$/ } @pages) {
    next if $listed{$page};
    print STDERR "error: $page: not in SUMMARY.md\n";
    $broken = 1;
}
exit($broken ? 1 : 0);
