package app

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cardorder/internal/config"
)

// A file that changes is taken once it stands still; one that is being written
// may be right in between and say something else.
func TestLook(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "programs.yaml")
	write := func(products string) string {
		t.Helper()
		text := "issuers:\n  - issuerId: ISSUER0001\n    programs: [" + products + "]\n"
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return stateOf([]byte(text), nil)
	}
	var logs bytes.Buffer
	first := write("{cardProductId: gold, duplicateWindow: 5h}")
	p, err := newPrograms(&config.Config{
		ProgramsFile: path,
		Issuers: []config.Issuer{
			{ID: "ISSUER0001", IndividualAddressRequired: true, DuplicateWindow: time.Hour}, {ID: "ISSUER0002", BINs: []string{"411111"}},
		},
	}, slog.New(slog.NewTextHandler(&logs, nil)))
	if err != nil {
		t.Fatal(err)
	}
	want := func(digest string, ok bool) {
		t.Helper()
		if p.digest() != digest || p.outcome.Load().ok != ok || p.rules("ISSUER0001").ProgramsDigest != digest {
			t.Errorf("digest %s, ok %v; want %s, %v", p.digest(), p.outcome.Load().ok, digest, ok)
		}
	}
	want(first, true)
	if one, two := p.rules("ISSUER0001"), p.rules("ISSUER0002"); one == nil || two == nil || !one.IndividualAddress || two.IndividualAddress ||
		one.Programs["gold"] == nil || two.Programs != nil || len(two.Guard.BINs) != 1 {
		t.Errorf("rules %+v, %+v", one, two)
	}
	for product, window := range map[string]time.Duration{"gold": 5 * time.Hour, "unknown": time.Hour} {
		if got := p.duplicateWindow("ISSUER0001", product); got != window {
			t.Errorf("the window of %s is %s, want %s", product, got, window)
		}
	}
	if got := p.duplicateWindow("NOBODY0001", "gold"); got != 0 {
		t.Errorf("the window of an unknown issuer is %s", got)
	}
	if n := strings.Count(logs.String(), "has no programs"); n != 1 || !strings.Contains(logs.String(), "issuerId=ISSUER0002") {
		t.Errorf("%d warnings: %s", n, &logs)
	}

	write("{cardProductId: gold}")
	p.look()
	want(first, true)
	second := write("{cardProductId: gold}, {cardProductId: silver}")
	p.look()
	want(first, true)
	p.look()
	want(second, true)

	// A fault is told once, in one line.
	logs.Reset()
	write("{cardProductId: '', alphaCard: 3}")
	for range 4 {
		p.look()
	}
	want(second, false)
	if got := logs.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "level=ERROR") ||
		!strings.Contains(got, "programs[0].cardProductId: must be") || !strings.Contains(got, "line 3: must be true or false") {
		t.Errorf("the log: %s", got)
	}
	write("{cardProductId: gold}, {cardProductId: silver}")
	p.look()
	p.look()
	want(second, true)

	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	p.look()
	want(second, true) // an editor may be about to put it back
	write("{cardProductId: gold}, {cardProductId: silver}")
	p.look()
	p.look()
	want(second, true)
}

func TestWatchEnds(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	(&programs{cfg: &config.Config{ProgramsFile: "programs.yaml"}}).watch(ctx)
	(&programs{cfg: &config.Config{}}).watch(t.Context()) // nothing to watch
}
