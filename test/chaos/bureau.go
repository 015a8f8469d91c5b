package main

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"cardorder/internal/d1sim"
)

// bureau is the D1 of a run, chosen by the seed, and how the service is set up for it.
//
// Where a repeat makes a second card, a run keeps to what the promise needs: D1
// shows an accepted order within resendAfter of the last moment at which a byte of
// it could have left. So a frozen replica that wakes up after its lease, a network
// that holds bytes back, and D1's own lag must together stay below it. Where D1
// knows a repeated issuerRequestId again, they need not and do not.
type bureau struct {
	idempotent bool
	ids        bool // notifications and answers name our requests
	settings   map[string]any
	noise      map[string]any // d1sim.Faults
	losing     float64        // share of the notifications that get lost
	attended   bool           // somebody pauses and resumes the lane; else it has to help itself

	// Of the service's configuration.
	callTimeout, resendAfter, silentAfter     time.Duration
	concurrency                               int // calls at once, for each replica
	rate, breakerThreshold, stopAfterRefusals int

	freeze [2]time.Duration // from, to
	stall  [2]time.Duration // of the network to D1
	lag    time.Duration    // of status answers, at most
}

func newBureau(r *rand.Rand) bureau {
	b := bureau{
		idempotent: r.IntN(3) == 0, ids: r.IntN(4) > 0, attended: r.IntN(4) > 0,
		callTimeout: time.Second, resendAfter: 6 * time.Second, silentAfter: 2 * time.Second,
		freeze: [2]time.Duration{2200 * time.Millisecond, 3500 * time.Millisecond},
		stall:  [2]time.Duration{300 * time.Millisecond, time.Second},
		lag:    600 * time.Millisecond,
	}
	repeat := d1sim.RepeatSecondCard
	if b.idempotent {
		repeat, b.resendAfter = pick(r, d1sim.RepeatSame, d1sim.RepeatSame, d1sim.RepeatConflict), 3*time.Second
		b.freeze[1], b.stall[1], b.lag = 6*time.Second, 4*time.Second, 5*time.Second
	}
	b.concurrency, b.rate = pick(r, 4, 8, 32), pick(r, 0, 0, 80)
	b.breakerThreshold, b.stopAfterRefusals = pick(r, 3, 5, 10), pick(r, 2, 5)
	b.settings = map[string]any{
		"repeat":                  repeat,
		"stepInterval":            between(r, [2]time.Duration{50 * time.Millisecond, 400 * time.Millisecond}).String(),
		"statusLag":               between(r, [2]time.Duration{0, b.lag}).String(),
		"statusLatestOnly":        r.IntN(2) == 0,
		"statusWithoutRequestIds": !b.ids && r.IntN(2) == 0,
		"notifyWithoutRequestIds": !b.ids,
		"requestIdPlace":          pick(r, d1sim.PlaceTop, d1sim.PlaceDetails, d1sim.PlaceBoth),
		"unknownCard":             pick(r, d1sim.UnknownCardNotFound, d1sim.UnknownCardEmpty),
		"maxPerCall":              5 + r.IntN(40),
		"retryBackoff":            "50ms",
		"answerDelay":             between(r, [2]time.Duration{0, 60 * time.Millisecond}).String(),
		"tokenLifetime":           "15m",
		"paused":                  false,
		"failAt":                  nil,
		"stopAt":                  "",
		"wrongUrl":                false,
		"wrongKey":                false,
		"clockSkew":               between(r, [2]time.Duration{-time.Minute, time.Minute}).String(),
		"holdNotifications":       false,
		"duplicateNotifications":  false,
		"reverseNotifications":    false,
		"lateChange":              pick(r, d1sim.LateChangeNotified, d1sim.LateChangeRefused),
		"changeDelay":             between(r, [2]time.Duration{0, 500 * time.Millisecond}).String(),
		"changePending":           r.IntN(2) == 0,
		"repeatedChange":          pick(r, d1sim.RepeatAgain, d1sim.RepeatSame),
		"statusWithChanges":       r.IntN(2) == 0,
		"canceledStatus":          pick(r, d1sim.OperationSuccessful, d1sim.OperationFailed),
	}
	// Noise that never ends, besides the trouble that comes and goes.
	share := func() float64 { return float64(r.IntN(4)) / 100 }
	b.noise = map[string]any{
		"seed": r.Uint64N(1 << 32), "lostBefore": share(), "lostAfter": share(), "errorBefore": share(), "errorAfter": share(),
		"rateLimited": share(), "retryAfter": "1s", "slow": share(), "slowBy": (b.callTimeout * 5 / 4).String(), "revoked": share() / 4,
		"noOperationId": share(), "tokenErrors": 2 * share(),
		"duplicateNotifications": 2 * share(), "lateNotifications": 2 * share(), "lateBy": between(r, [2]time.Duration{0, 2 * time.Second}).String(),
	}
	// What only a question can tell then must not be hidden behind a later order.
	if !b.latestOnly() {
		b.losing = pick(r, 0, 0.2, 0.85)
		b.noise["lostNotifications"] = b.losing
	}
	return b
}

func (b bureau) latestOnly() bool { return b.settings["statusLatestOnly"] == true }

func (b bureau) String() string {
	words := []string{fmt.Sprintf("a repeated request gets %v", b.settings["repeat"])}
	if !b.ids {
		words = append(words, "notifications name no request")
	}
	if b.latestOnly() {
		words = append(words, "it shows only the latest order of a card")
	}
	if b.losing > 0 {
		words = append(words, fmt.Sprintf("a share of %v of the notifications gets lost", b.losing))
	}
	if !b.attended {
		words = append(words, "nobody looks after the lane")
	}
	words = append(words, fmt.Sprintf("status answers lag %v", b.settings["statusLag"]), fmt.Sprintf("resendAfter %v", b.resendAfter),
		fmt.Sprintf("%d calls at once per replica", b.concurrency))
	if b.rate > 0 {
		words = append(words, fmt.Sprintf("%d a second", b.rate))
	}
	return strings.Join(words, ", ")
}

func between(r *rand.Rand, limits [2]time.Duration) time.Duration {
	d := limits[0]
	if more := limits[1] - limits[0]; more > 0 {
		d += time.Duration(r.Int64N(int64(more)))
	}
	return d.Round(time.Millisecond)
}

func pick[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }
