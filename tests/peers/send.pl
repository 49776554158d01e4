# Perl's Net::SMTP: perl send.pl PORT SENDER RECIPIENT <message
use strict;
use warnings;
use Net::SMTP;

my ($port, $from, $to) = @ARGV;
binmode STDIN;
my $message = do { local $/; <STDIN> } // '';
my $smtp = Net::SMTP->new('127.0.0.1', Port => $port, Timeout => 20) or die "cannot connect: $@";
($smtp->mail($from) && $smtp->to($to) && $smtp->data && $smtp->datasend($message) && $smtp->dataend)
    or die $smtp->code . ' ' . $smtp->message;
$smtp->quit;
