package builtins

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/sbx-star/sbx-star/event"
)

// This file defines how secrets are kept out of what a run says. Whatever it
// says goes through one Mask: stdout and events here, errors in package workflow.

// masked stands in place of a secret.
const masked = "***"

const (
	shortestSecret = 4       // bytes; to mask less would garble everything
	shortestLine   = 8       // of a secret that has several, to be masked by itself
	mostHeld       = 1 << 20 // bytes of output that may be the beginning of a secret
)

// A Mask knows the secrets of a run. It may be used from any goroutine.
type Mask struct {
	mu    sync.RWMutex
	forms []string // of all secrets, in every encoding
}

// Add makes a value a secret: from now on Text replaces it, each longer line of
// it, and what becomes of it in quotes, JSON, a URL, base64, hexadecimal and a
// shell's command line.
func (m *Mask) Add(secret string) {
	forms := encodings(secret)
	if strings.Contains(secret, "\n") {
		for line := range strings.Lines(secret) {
			if line = strings.TrimSpace(line); len(line) >= shortestLine {
				forms = append(forms, encodings(line)...)
			}
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.forms = append(slices.Clone(m.forms), forms...)
	slices.Sort(m.forms)
	m.forms = slices.Compact(m.forms)
}

func encodings(secret string) []string {
	inJSON, _ := json.Marshal(secret) // a string can always be
	quoted := strconv.Quote(secret)
	forms := []string{
		secret, quoted[1 : len(quoted)-1], string(inJSON[1 : len(inJSON)-1]),
		strings.ReplaceAll(secret, "'", `'"'"'`), strings.ReplaceAll(secret, "\n", "\r\n"),
		url.QueryEscape(secret), url.PathEscape(secret),
	}
	if len(secret) >= shortestLine {
		encoded := hex.EncodeToString([]byte(secret))
		forms = append(forms, encoded, strings.ToUpper(encoded))
		// Inside of a longer text, base64 has three forms, but for the
		// characters at both ends, which hold bits of the neighbours.
		for before := range 3 {
			padded := append(make([]byte, before), secret...)
			from, to := (8*before+5)/6, 8*len(padded)/6
			for _, encoding := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
				forms = append(forms, encoding.EncodeToString(padded)[from:to])
			}
		}
	}
	return forms
}

// span is a part of a text.
type span struct{ from, to int }

// spans are where secrets stand in a text, in order and apart from each other.
func spans(text string, forms []string) []span {
	var found []span
	for _, form := range forms {
		for from := 0; ; from++ { // the next one may overlap
			at := strings.Index(text[from:], form)
			if at < 0 {
				break
			}
			from += at
			found = append(found, span{from, from + len(form)})
		}
	}
	slices.SortFunc(found, func(a, b span) int { return a.from - b.from })
	apart := found[:0]
	for _, s := range found {
		if n := len(apart); n > 0 && s.from < apart[n-1].to {
			apart[n-1].to = max(apart[n-1].to, s.to)
		} else {
			apart = append(apart, s)
		}
	}
	return apart
}

func replace(text string, at []span) string {
	if len(at) == 0 {
		return text
	}
	var b strings.Builder
	from := 0
	for _, s := range at {
		b.WriteString(text[from:s.from])
		b.WriteString(masked)
		from = s.to
	}
	b.WriteString(text[from:])
	return b.String()
}

func (m *Mask) known() []string {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.forms
}

// Text is a text without its secrets.
func (m *Mask) Text(text string) string { return replace(text, spans(text, m.known())) }

// sink hands events on without their secrets.
func (m *Mask) sink(to event.Sink) event.Sink {
	if to == nil {
		return nil
	}
	masked := event.Mask(to, m.Text)
	return func(e event.Event) {
		if len(m.known()) > 0 {
			masked(e)
		} else {
			to(e)
		}
	}
}

// A maskedWriter masks a stream that comes in pieces of any length. What may be
// the beginning of a secret is held back until what follows tells.
type maskedWriter struct {
	mask *Mask
	to   io.Writer
	held string
}

// Write takes all of p, or fails as the writer below does.
func (w *maskedWriter) Write(p []byte) (int, error) {
	forms := w.mask.known()
	if len(forms) == 0 && w.held == "" {
		return w.to.Write(p)
	}
	text := w.held + string(p)
	at := spans(text, forms)
	until := len(text) - undecided(text, forms)
	for _, s := range at {
		if s.from < until && until < s.to {
			until = s.from // a secret that may go on as a part of another one
		}
	}
	if len(text)-until > mostHeld {
		until = len(text)
	}
	w.held = text[until:]
	for len(at) > 0 && at[len(at)-1].from >= until {
		at = at[:len(at)-1]
	}
	_, err := io.WriteString(w.to, replace(text[:until], at))
	return len(p), err
}

// undecided is the length of the longest end of text that some form begins with.
func undecided(text string, forms []string) int {
	longest := 0
	for _, form := range forms {
		for n := min(len(form)-1, len(text)); n > longest; n-- {
			if strings.HasSuffix(text, form[:n]) {
				longest = n
			}
		}
	}
	return longest
}

// flush writes what was held back.
func (w *maskedWriter) flush() error {
	if w.held == "" {
		return nil
	}
	text := w.held
	w.held = ""
	_, err := io.WriteString(w.to, w.mask.Text(text))
	return err
}

// Mask is a text without the secrets of the run. Whoever shows what a run has
// come to puts it through here.
func (r *Run) Mask(text string) string { return r.mask.Text(text) }

// Flush writes what print has held back because a secret may begin with it. To
// be called when no more comes, or when somebody waits for what there is.
func (r *Run) Flush() error {
	r.out.Lock()
	defer r.out.Unlock()
	return r.stdout.flush()
}
