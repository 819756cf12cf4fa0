package event_test

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sbx-star/sbx-star/event"
)

// screen is as much of a terminal as the view uses. It wraps, and knows wide
// characters only as the tests use them.
type screen struct {
	mu       sync.Mutex
	columns  int
	cells    [][]rune
	row, col int
}

func newScreen(columns int) *screen { return &screen{columns: columns, cells: [][]rune{nil}} }

func (s *screen) size() (columns, rows int) { return s.columns, 24 }

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for text := string(p); text != ""; {
		if rest, ok := strings.CutPrefix(text, "\x1b["); ok {
			i := strings.IndexAny(rest, "AJ")
			if rest[i] == 'A' {
				n, _ := strconv.Atoi(rest[:i])
				s.row -= n
			} else {
				s.cells = s.cells[:s.row+1]
				s.cells[s.row] = s.cells[s.row][:min(s.col, len(s.cells[s.row]))]
			}
			text = rest[i+1:]
			continue
		}
		c := []rune(text)[0]
		text = text[len(string(c)):]
		switch {
		case c == '\r':
			s.col = 0
		case c == '\n': // and a carriage return, as terminals are set
			s.col = 0
			s.down()
		default:
			n := 1
			if c > 0x3000 {
				n = 2
			}
			if s.col+n > s.columns {
				s.col = 0
				s.down()
			}
			for len(s.cells[s.row]) < s.col {
				s.cells[s.row] = append(s.cells[s.row], ' ')
			}
			s.cells[s.row] = append(s.cells[s.row][:s.col], c)
			if s.col += n; n == 2 {
				s.cells[s.row] = append(s.cells[s.row], 0)
			}
		}
	}
	return len(p), nil
}

func (s *screen) down() {
	if s.row++; s.row == len(s.cells) {
		s.cells = append(s.cells, nil)
	}
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	lines := make([]string, len(s.cells))
	for i, line := range s.cells {
		lines[i] = strings.ReplaceAll(string(line), "\x00", "")
	}
	return strings.Join(lines, "\n")
}

func TestView(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScreen(40)
		v := event.StartView(s, s.size)
		out := v.Writer(s)
		see := func(want string) {
			t.Helper()
			synctest.Wait()
			if got := s.String(); got != want {
				t.Errorf("the screen shows\n%s\nwant\n%s", got, want)
			}
		}
		fmt.Fprintln(out, "hello")
		v.Sink(event.Create{Span: 1, Resource: event.Resource{Kind: "sandbox", Name: "w"}})
		see("hello\n") // so soon there is nothing to be seen
		time.Sleep(time.Second + time.Millisecond)
		see("hello\n⠋ creating sandbox \"w\"  1s")
		fmt.Fprintln(out, "more")
		see("hello\nmore\n⠋ creating sandbox \"w\"  1s")
		v.Sink(event.Start{Span: 2, Sandbox: "w", Command: "echo 日本語日本語日本語日本語\nsecond"})
		time.Sleep(time.Second)
		see("hello\nmore\n⠋ creating sandbox \"w\"  2s\n⠋ w $ echo 日本語日本語日本語日…  0s")
		fmt.Fprint(out, "a prompt: ")
		time.Sleep(time.Second)
		see("hello\nmore\na prompt: ") // the line is not torn
		s.columns = 16
		fmt.Fprintln(out, "done")
		time.Sleep(time.Second)
		see("hello\nmore\na prompt: done\n⠋ creati…  4s\n⠋ w $ ec…  2s")
		v.Sink(event.Created{Span: 1})
		time.Sleep(100 * time.Millisecond)
		see("hello\nmore\na prompt: done\n⠙ w $ ec…  3s")
		v.Sink(event.Exit{Span: 2})
		see("hello\nmore\na prompt: done\n")
		v.Sink(event.Start{Span: 3, Sandbox: "w", Command: "x"})
		time.Sleep(time.Second)
		v.Close()
		see("hello\nmore\na prompt: done\n")
		fmt.Fprint(out, "afterwards")
		see("hello\nmore\na prompt: done\nafterwards")
	})
}

// However prints and events come, in the end the screen has what was printed
// and nothing else.
func TestViewKeepsOutputWhole(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	dice := rand.New(rand.NewPCG(seed, 0))
	synctest.Test(t, func(t *testing.T) {
		s := newScreen(30)
		v := event.StartView(s, s.size)
		out := v.Writer(s)
		var want strings.Builder
		for span := range 500 {
			switch dice.IntN(5) {
			case 0:
				v.Sink(event.Start{Span: span, Sandbox: "w", Command: strings.Repeat("长x", dice.IntN(40))})
			case 1:
				v.Sink(event.Exit{Span: dice.IntN(span + 1)})
			case 2:
				time.Sleep(time.Duration(dice.IntN(700)) * time.Millisecond)
			default:
				text := fmt.Sprint(span, []string{"\n", ",", " and\nmore"}[dice.IntN(3)])
				if strings.Count(want.String(), "\n") > 0 && len(want.String())-strings.LastIndex(want.String(), "\n") > 15 {
					text += "\n"
				}
				want.WriteString(text)
				fmt.Fprint(out, text)
			}
		}
		v.Close()
		if got := s.String(); got != want.String() {
			t.Errorf("the screen shows\n%s\nand was to show\n%s", got, want.String())
		}
	})
}
