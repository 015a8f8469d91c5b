package order_test

import (
	"embed"
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"

	"cardorder/internal/order"
)

// guard knows two ranges of an issuer that no scheme's public prefix covers, so
// that a test tells the issuer's numbers from any scheme's.
var (
	guard = order.PANGuard{BINs: []string{"990000", "99111122"}}
	rules = &order.Rules{Guard: guard}
)

const (
	issuerPAN = "9900001234567899" // Luhn, the issuer's
	visaPAN   = "4111111111111111" // published test number
)

//go:embed testdata/*.json attention.go
var files embed.FS

// object is a JSON object under construction.
type object = map[string]any

// sample reads testdata/<channel>.json, a valid order.
func sample(tb testing.TB, channel string) object {
	tb.Helper()
	var o object
	if err := json.Unmarshal(golden(tb, channel+".json"), &o); err != nil {
		tb.Fatal(err)
	}
	return o
}

func golden(tb testing.TB, name string) []byte {
	tb.Helper()
	text, err := files.ReadFile("testdata/" + name)
	if err != nil {
		tb.Fatal(err)
	}
	return text
}

func text(tb testing.TB, v any) []byte {
	tb.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// clone copies a JSON value, so that a change of one leaves the other alone.
func clone[T any](tb testing.TB, v T) T {
	tb.Helper()
	var c T
	if err := json.Unmarshal(text(tb, v), &c); err != nil {
		tb.Fatal(err)
	}
	return c
}

// missing as a value takes the member away.
type missing struct{}

// set changes the value at a JSON pointer: parts of objects and lists.
func set(o object, pointer string, value any) {
	parts := strings.Split(pointer[1:], "/")
	last := parts[len(parts)-1]
	var parent any = o
	for _, part := range parts[:len(parts)-1] {
		switch p := parent.(type) {
		case object:
			parent = p[part]
		case []any:
			parent = p[atoi(part)]
		}
	}
	switch p := parent.(type) {
	case object:
		if value == (missing{}) {
			delete(p, last)
		} else {
			p[last] = value
		}
	case []any:
		p[atoi(last)] = value
	}
}

func atoi(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		panic(err)
	}
	return n
}

// pointers lists every place of v, the places inside it included.
func pointers(v any) []string {
	var all []string
	var walk func(at string, v any)
	walk = func(at string, v any) {
		if at != "" {
			all = append(all, at)
		}
		switch v := v.(type) {
		case object:
			for _, name := range slices.Sorted(maps.Keys(v)) {
				walk(at+"/"+name, v[name])
			}
		case []any:
			for i, element := range v {
				walk(at+"/"+strconv.Itoa(i), element)
			}
		}
	}
	walk("", v)
	return all
}

// wellFormed decodes text that has to be valid.
func wellFormed(tb testing.TB, text []byte) *order.Request {
	tb.Helper()
	r, faults := order.Decode(text, rules)
	if len(faults) > 0 {
		tb.Fatalf("a valid order was refused: %v\n%s", faults, text)
	}
	return r
}

// places writes faults as "pointer code", sorted.
func places(faults order.Faults) []string {
	var list []string
	for _, f := range faults {
		list = append(list, f.Pointer+" "+f.Code)
	}
	slices.Sort(list)
	return list
}

// digitRun is the length of the longest run of digits in s, whatever separates
// them.
func digitRun(s string) int {
	longest, run := 0, 0
	for _, r := range s {
		switch {
		case r >= '0' && r <= '9':
			run++
			longest = max(longest, run)
		case !strings.ContainsRune(" ._-", r):
			run = 0
		}
	}
	return longest
}

// jweOfUsualLength has the form of a JWE with a card's data and its tracks.
var jweOfUsualLength = strings.Repeat("eyJhbGciOiJFQ0RI", 14) + "..MTIzNDU2Nzg5MDEy." + strings.Repeat("Y2lwaGVy-GV4d_8x", 24) + ".MTIzNDU2Nzg5MDEyMzQ1Ng"
