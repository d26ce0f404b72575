# What jq has and jaq leaves out, or has in a form that differs from jq's manual.

def toarray: if isarray then . else [.] end;
def ascii: [.] | implode;
def trimstr($s): ltrimstr($s) | rtrimstr($s);
def have_literal_numbers: true;
def have_decnum: true;
def gamma: lgamma;

def del(f): delpaths([path(f)]);
def pick(f): . as $whole | reduce path(f) as $path (null; setpath($path; $whole | getpath($path)));

def join($sep): reduce .[] as $x (null; (if . == null then "" else . + $sep end) + ($x | if isstring then . elif . == null then "" elif . < "" then tojson else . end)) // "";

# A pattern may be given together with its flags, as an array.
def    test($re): if $re | isarray then    test($re[0]; $re[1]) else    test($re; null) end;
def   match($re): if $re | isarray then   match($re[0]; $re[1]) else   match($re; null) end;
def capture($re): if $re | isarray then capture($re[0]; $re[1]) else capture($re; null) end;
# A group that took no part is `null`, and a group all the same.
def scan($re; $flags): matches($re; "g" + $flags)[] | map(.string) | if length > 1 then .[1:] else .[0] end;
def scan($re): scan($re; null);

# Rows of tables.
def @csv:
  def cell: if isstring then "\"" + gsub("\""; "\"\"") + "\"" elif . == null then "" elif . < "" then tojson else error("\(type) cannot be a cell") end;
  if isarray then map(cell) | join(",") else error("\(type) cannot be a row") end;
def @tsv:
  def escaped: gsub("\\\\"; "\\\\") | gsub("\t"; "\\t") | gsub("\n"; "\\n") | gsub("\r"; "\\r");
  def cell: if isstring then escaped elif . == null then "" elif . < "" then tojson else error("\(type) cannot be a cell") end;
  if isarray then map(cell) | join("\t") else error("\(type) cannot be a row") end;

# SQL.
def INDEX(stream; f): reduce stream as $row ({}; .[$row | f | tostring] = $row);
def INDEX(f): INDEX(.[]; f);
def IN(s): any(s == .; .);
def IN(src; s): any(src == s; .);

# Streams of paths and leaves.
def tostream: path(def r: (.[]? | r), .; r) as $p | getpath($p) | reduce path(.[]?) as $q ([$p, .]; [$p + $q]);
def fromstream(f): { x: null, e: false } as $begin | foreach f as $i ($begin;
  if .e then $begin end
  | if $i | length == 2
    then .e = ($i[0] | length == 0) | setpath(["x"] + $i[0]; $i[1])
    else .e = ($i[0] | length == 1) end;
  if .e then .x else empty end);
def truncate_stream(stream): . as $n | null | stream
  | if (.[0] | length) > $n then .[0] |= .[$n:] else empty end;
