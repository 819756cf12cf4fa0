package workflow_test

import (
	"errors"
	"runtime"
	"strings"
	"testing"

	"github.com/sbx-star/sbx-star/builtins"
)

// One operation that would take more memory than there is ends the workflow, and
// does not begin.
func TestMemoryOfOneOperation(t *testing.T) {
	for _, operation := range []string{
		`"x" * 1000000000`,
		`1000000000 * b"x"`,
		`[0] * 1000000000`,
		`(0, 1) * 500000000`,
		`",".join([big] * 1000)`,
		`getattr(",", "join")([big] * 1000)`,
		`[f([big] * 1000) for f in [",".join]]`,
		`big.replace("x", big)`,
		`big.replace("", big)`,
		`"{0}{0}{0}{0}{0}{0}{0}{0}{0}{0}".format(big * 5)`,
		`"%s%s%s%s%s" % ((big * 4,) * 5)`,
		`"%(a)s%(a)s%(a)s%(a)s%(a)s" % {"a": big * 5}`,
		`str([[[[[[big] * 10] * 10] * 10] * 10] * 10])`,
		`repr(((((((((((1,) * 10,) * 10,) * 10,) * 10,) * 10,) * 10,) * 10,) * 10,) * 10,) * 10)`,
		`json.encode([big] * 1000)`,
		`json.decode("[" + "0," * 2000000 + "0]")`,
		`print([big] * 1000)`,
		`str(struct(a = [struct(b = big)] * 1000))`,
		`json.encode(struct(a = [big] * 1000))`,
		`str([re.search("x+", big[:100000])] * 40000)`,
		`str([big.elems()] * 1000)`,
		`fail([big] * 1000)`,
		`log.info("big", a = [big] * 1000)`,
		`log.error([big] * 1000)`,
		`shell_quote([big] * 1000)`,
		`host.run([big] * 1000)`,
		`list(("x" * 5000000).codepoints())`,
		`json.indent("[" * 5000 + "0" + ",0" * 1000000 + "]" * 5000)`,
		`json.indent("[" + "0," * 100 + "0]", indent = big)`,
		`json.indent("[" + "0," * 100 + "0]", prefix = big)`,
		`re.find_all("x", big[:100000])`,
		`re.find_all("", big[:100000])`,
		`re.find_all("(x)(?P<n>x)", big[:200000])`,
		`re.sub("x", "y" * 1000, big[:100000])`,
		`re.sub("^x*", "$0" * 1000, big[:100000])`,
		`re.sub("(" * 20 + "x" + ")" * 20, lambda m: "y", big[:100000])`,
		`parallel(lambda i: i, range(1000000000))`,
		`big.split("x")`,
		`("x " * 4000000).split()`,
		`("\n" * 4000000).splitlines()`,
		`list(range(1000000000))`,
		`tuple(range(1000000000))`,
		`sorted(range(1000000000))`,
		`sorted(iterable = range(1000000000))`,
		`reversed(range(1000000000))`,
		`enumerate(range(1000000000))`,
		`zip(range(1000000000), range(1000000000))`,
		`set(range(1000000000))`,
		`bytes(range(1000000000))`,
		`[].extend(range(1000000000))`,
		`set().union(range(1000000000))`,
		`max(*range(1000000000))`,
		`(lambda n: [0] * n)(1000000000)`,
		`{"a": [i for i in [0] * 1000000000 if i]}`,
		`parallel(lambda i: [0] * 1000000000, [1])`,
		`spawn(lambda: "x" * 1000000000).result()`,
		`attempt(lambda: "x" * 1000000000)`,
	} {
		t.Run(operation, func(t *testing.T) {
			runtime.GC()
			b := newBench(t)
			b.options.MaxMemory = builtins.MemoryInUse() + 64<<20
			err := b.run(t.Context(), "def main():\n    big = \"x\" * 4000000\n    "+operation+"\n    fail('not reached')\n")
			var budget *builtins.BudgetError
			if !errors.As(err, &budget) || !strings.Contains(rendered(err), "would use more than") {
				t.Fatalf("ended with %q", rendered(err))
			}
			if !strings.Contains(rendered(err), "main.star:3:") || !strings.Contains(rendered(err), "--max-memory") {
				t.Errorf("rendered as %q", rendered(err))
			}
		})
	}
	// What takes little of much passes.
	for _, operation := range []string{
		`re.sub("nothing", "y" * 1000, big[:100000])`, `re.sub("x+", "y" * 1000, big[:100000])`, `re.find_all("^x", big)`, `re.sub("x", "y", "x" * 1000)`,
		`json.indent("[" + "0," * 10000 + "0]")`, `str([struct(a = 1)] * 1000)`, `parallel(lambda i: i, range(10))`,
	} {
		b := newBench(t)
		runtime.GC()
		b.options.MaxMemory = builtins.MemoryInUse() + 128<<20
		if err := b.run(t.Context(), "def main():\n    big = \"x\" * 4000000\n    "+operation+"\n"); err != nil {
			t.Errorf("%s ended with %q", operation, rendered(err))
		}
	}
	for _, statement := range []string{
		`x = "x"; x *= 1000000000`, `x = [0]; x *= 1000000000`, `x = {"a": "x"}; x["a"] *= 1000000000`, `x = []; x += range(1000000000)`,
		`x = "%s%s"; x %= (big * 8, big * 8)`,
	} {
		b := newBench(t)
		b.options.MaxMemory = builtins.MemoryInUse() + 64<<20
		err := b.run(t.Context(), "def main():\n    big = \"x\" * 4000000\n    "+statement+"\n    fail('not reached')\n")
		if !strings.Contains(rendered(err), "would use more than") {
			t.Errorf("%s ended with %q", statement, rendered(err))
		}
	}
}

// What is guarded does the same as without a limit, its errors included.
func TestGuardedOperationsAreTheSame(t *testing.T) {
	const source = `
def double(x = 2 * 3, *args, **kwargs):
    x *= 2
    return x

def main():
    d, i = {"a": [1, 2]}, 0
    d["a"] *= 2
    d["a"] += (5,)
    d["b"] = d["a"]
    s = "%s-%d" % ("x", 3) + "%%" % ()
    s %= ()
    i += len(s)
    f = ", ".join
    print(double(), double("ab"), d, s, i, 2 * 1.5, 7 % 4, -7 % 4, 7.5 % 2, 1 << 70 * 1 % 3, (1 << 70) * (1 << 70))
    print(re.sub("(b)", "<$1>", "abc" * 3, count = 2), re.sub("b", lambda m: m.text.upper(), "abc"), re.find_all("b*", "abbc"), parallel(lambda i: i, [1]))
    print(json.indent("[1,[2]]", prefix = ">"), list("aé".codepoints()), str(struct(a = 1)), shell_quote(["a b"]), re.search("b", "abc"))
    print(f([x * 2 for x in "abc".elems()]), "a-b".split("-"), "a-b".replace("-", "+"), "{}{a}".format(1, a = 2), hasattr("", "join"))
    print(list(range(3)), sorted([3, 1], reverse = True, key = lambda x: -x), dict(a = 1), dict([(1, 2)]), set([1]).union([2]), str(1), repr("x"), bytes("x"))
    print(json.encode({"a": [1]}), json.decode("[1]"), max(*[1, 2]), type(list), list, getattr("x", "nope", 3), struct(join = 3).join)
    for bad in [lambda: "a" * "b", lambda: "%d" % "x", lambda: 1 .join, lambda: "".join(1), lambda: list(1), lambda: "%s" % (), lambda: "x" * (1 << 40), lambda: "".join(), lambda: [1].joim]:
        print(attempt(bad).error.message)
    "a" * len(d) * None
`
	plain, guarded := newBench(t), newBench(t)
	want := rendered(plain.run(t.Context(), source))
	guarded.options.MaxMemory = 1 << 40
	got := rendered(guarded.run(t.Context(), source))
	if guarded.stdout.String() != plain.stdout.String() {
		t.Errorf("printed\n%s, want\n%s", &guarded.stdout, &plain.stdout)
	}
	if got != want {
		t.Errorf("ended with\n%s, want\n%s", got, want)
	}
}
