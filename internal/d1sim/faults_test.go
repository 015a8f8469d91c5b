package d1sim_test

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"cardorder/internal/d1sim"
)

// Every fault by chance, at the share 1, does what it says.
func TestFaults(t *testing.T) {
	t.Parallel()
	for fault, c := range map[d1sim.Fault]struct {
		faults   d1sim.Faults
		statuses []int // one of them; 0: the connection is cut
		cards    int
	}{
		d1sim.FaultLostBefore:    {d1sim.Faults{LostBefore: 1}, []int{0}, 0},
		d1sim.FaultLostAfter:     {d1sim.Faults{LostAfter: 1}, []int{0}, 1},
		d1sim.FaultErrorBefore:   {d1sim.Faults{ErrorBefore: 1}, []int{500, 502, 503}, 0},
		d1sim.FaultErrorAfter:    {d1sim.Faults{ErrorAfter: 1}, []int{500}, 1},
		d1sim.FaultRateLimited:   {d1sim.Faults{RateLimited: 1}, []int{429}, 0},
		d1sim.FaultSlow:          {d1sim.Faults{Slow: 1, SlowBy: d1sim.Duration(time.Millisecond)}, []int{202}, 1},
		d1sim.FaultRevoked:       {d1sim.Faults{Revoked: 1}, []int{401}, 0},
		d1sim.FaultNoOperationID: {d1sim.Faults{NoOperationID: 1}, []int{202}, 1},
	} {
		t.Run(string(fault), func(t *testing.T) {
			t.Parallel()
			b := newBureau(t, still)
			b.set(func(s *d1sim.Settings) { s.Faults = &c.faults })
			got := b.order("card-1", b.thales("request-1"))
			record := b.sim.History(d1sim.Filter{Kind: d1sim.KindProduction})[0]
			if !slices.Contains(c.statuses, got.status) || record.Status != got.status || record.Fault != fault || len(b.sim.Cards()) != c.cards {
				t.Errorf("got %d, %d cards, history %+v", got.status, len(b.sim.Cards()), record)
			}
			counts, err := b.management.FaultCounts(t.Context())
			if err != nil || !maps.Equal(counts, map[d1sim.Fault]int{fault: 1}) {
				t.Errorf("counts %v %v", counts, err)
			}
			b.set(func(s *d1sim.Settings) { s.Faults = nil })
			b.token = b.fetchToken(b.claims(issuerID))
			b.accepted("card-1", b.thales("request-1"))
		})
	}
}

// What an order meets depends on its id and on the seed only, so that a run can be repeated in any order.
func TestFaultsAreRepeatable(t *testing.T) {
	t.Parallel()
	const orders = 300
	run := func(seed uint64, backwards bool) (met map[string][]d1sim.Fault) {
		b := newBureau(t, still)
		body := b.thales("")
		b.set(func(s *d1sim.Settings) {
			s.Faults = &d1sim.Faults{Seed: seed, LostBefore: 0.1, LostAfter: 0.1, ErrorBefore: 0.1, ErrorAfter: 0.1}
		})
		met = make(map[string][]d1sim.Fault)
		for i := range orders {
			if backwards {
				i = orders - 1 - i
			}
			id := strconv.Itoa(i)
			body["issuerRequestId"] = id
			b.order("card-"+id, body)
			b.order("card-"+id, body)
		}
		for _, r := range b.sim.History(d1sim.Filter{Kind: d1sim.KindProduction}) {
			met[r.IssuerRequestID] = append(met[r.IssuerRequestID], r.Fault)
		}
		return met
	}
	first := run(7, false)
	if same := run(7, true); !maps.EqualFunc(first, same, slices.Equal) {
		t.Error("the same seed gave other faults")
	}
	if other := run(8, false); maps.EqualFunc(first, other, slices.Equal) {
		t.Error("another seed gave the same faults")
	}
	counts, differ := make(map[d1sim.Fault]int), false
	for _, met := range first {
		for _, f := range met {
			counts[f]++
		}
		differ = differ || met[0] != met[1]
	}
	for _, f := range []d1sim.Fault{d1sim.FaultLostBefore, d1sim.FaultLostAfter, d1sim.FaultErrorBefore, d1sim.FaultErrorAfter} {
		if share := float64(counts[f]) / (2 * orders); share < 0.05 || share > 0.15 {
			t.Errorf("share of %s: %v, want about 0.1", f, share)
		}
	}
	if !differ {
		t.Error("a repeated order always met what its first sending met")
	}
}

func TestFaultsOfQuestionsAndTokens(t *testing.T) {
	t.Parallel()
	b := newBureau(t, still)
	b.accepted("card-1", b.thales("request-1"))
	b.set(func(s *d1sim.Settings) { s.Faults = &d1sim.Faults{ErrorAfter: 1, TokenErrors: 1} })
	if got := b.productionStatus("card-1"); got.status != http.StatusInternalServerError {
		t.Errorf("status: got %d", got.status)
	}
	if got := b.grant(b.assertion(b.claims(issuerID))); got.status < 500 {
		t.Errorf("token: got %d", got.status)
	}
	b.set(func(s *d1sim.Settings) { s.Faults.ProductionOnly = true })
	b.operations("card-1")
}

// A 429 tells how long to wait in both forms of Retry-After, the date by the bureau's own clock.
func TestFaultsRetryAfter(t *testing.T) {
	t.Parallel()
	b := newBureau(t, still)
	b.set(func(s *d1sim.Settings) {
		s.ClockSkew = d1sim.Duration(time.Hour)
		s.Faults = &d1sim.Faults{RateLimited: 1, RetryAfter: d1sim.Duration(1500 * time.Millisecond)}
	})
	forms := make(map[string]bool)
	body := b.thales("request-1")
	for len(forms) < 2 {
		header := b.order("card-1", body).header
		told := header.Get("Retry-After")
		if at, err := http.ParseTime(told); err == nil {
			date, err := http.ParseTime(header.Get("Date"))
			if wait := at.Sub(date); err != nil || wait < time.Second || wait > 3*time.Second {
				t.Errorf("Retry-After %s at %s", told, header.Get("Date"))
			}
			forms["date"] = true
			continue
		}
		if told != "2" {
			t.Fatalf("Retry-After %q", told)
		}
		forms["seconds"] = true
	}
}

func TestFaultsOfNotifications(t *testing.T) {
	t.Parallel()
	for fault, c := range map[d1sim.Fault]struct {
		faults d1sim.Faults
		times  int
	}{
		d1sim.FaultLostNotification:      {d1sim.Faults{LostNotifications: 1}, 0},
		d1sim.FaultDuplicateNotification: {d1sim.Faults{DuplicateNotifications: 1}, 2},
		d1sim.FaultLateNotification:      {d1sim.Faults{LateNotifications: 1, LateBy: d1sim.Duration(time.Millisecond)}, 1},
	} {
		t.Run(string(fault), func(t *testing.T) {
			t.Parallel()
			set := fast
			set.Faults = &c.faults
			b := newBureau(t, set)
			b.accepted("card-1", b.thales("request-1"))
			b.wait(d1sim.Condition{Cards: 1, Status: d1sim.CardShipped, Idle: true})
			if got := b.bank.statuses(); len(got) != c.times*len(toShipped) {
				t.Errorf("notified of %v", got)
			}
			if n := b.sim.FaultCounts()[fault]; n != len(toShipped) {
				t.Errorf("counted %d, want %d", n, len(toShipped))
			}
		})
	}
}

// Late notifications are overtaken by those that are not.
func TestLateNotificationsAreReordered(t *testing.T) {
	t.Parallel()
	set := fast
	set.Faults = &d1sim.Faults{LateNotifications: 0.5, LateBy: d1sim.Duration(200 * time.Millisecond)}
	b := newBureau(t, set)
	for i := range 5 {
		b.accepted(fmt.Sprintf("card-%d", i), b.thales(fmt.Sprintf("request-%d", i)))
	}
	b.wait(d1sim.Condition{Cards: 5, Status: d1sim.CardShipped, Idle: true})
	got := make(map[string][]int) // the steps of each card, in order of arrival
	overtaken := false
	for _, op := range slices.Concat(b.bank.received()...) {
		got[op.CardID] = append(got[op.CardID], slices.Index(toShipped, op.Details.Status))
	}
	for card, steps := range got {
		overtaken = overtaken || !slices.IsSorted(steps)
		if slices.Sort(steps); !slices.Equal(steps, []int{0, 1, 2, 3, 4, 5}) {
			t.Errorf("%s: told of the steps %v", card, steps)
		}
	}
	if len(got) != 5 || !overtaken {
		t.Errorf("told of %d cards; one overtook another: %v", len(got), overtaken)
	}
}

func TestWrongURLAndWrongKey(t *testing.T) {
	t.Parallel()
	b := newBureau(t, still)
	b.set(func(s *d1sim.Settings) { s.WrongURL = true })
	for _, got := range []answer{b.order("card-1", b.thales("request-1")), b.productionStatus("card-1")} {
		if got.status != http.StatusNotFound || strings.HasPrefix(string(got.body), "{") {
			t.Errorf("wrong URL: got %d %s", got.status, got.body)
		}
	}
	b.token = b.fetchToken(b.claims(issuerID)) // tokens come from elsewhere
	b.set(func(s *d1sim.Settings) { s.WrongURL, s.WrongKey = false, true })
	if got := b.order("card-1", b.thales("request-1")); got.status != 400 || got.json(t)["errorCode"] != "CRYPTO_ERROR" {
		t.Errorf("wrong key: got %d %s", got.status, got.body)
	}
	b.set(func(s *d1sim.Settings) { s.WrongKey = false })
	b.accepted("card-1", b.thales("request-1"))
}

func TestClockSkew(t *testing.T) {
	t.Parallel()
	b := newBureau(t, still)
	b.set(func(s *d1sim.Settings) { s.ClockSkew = d1sim.Duration(10 * time.Minute) })
	if got := b.grant(b.assertion(b.claims(issuerID))); got.status != 400 { // it ends in 5 minutes
		t.Errorf("token, clock ahead: got %d %s", got.status, got.body)
	}
	b.set(func(s *d1sim.Settings) { s.ClockSkew = d1sim.Duration(-10 * time.Minute) })
	if got := b.grant(b.assertion(b.claims(issuerID))); got.status != 400 { // issued in the future
		t.Errorf("token, clock behind: got %d %s", got.status, got.body)
	}
	b.set(func(s *d1sim.Settings) { s.ClockSkew = d1sim.Duration(-30 * time.Second) })
	b.token = b.fetchToken(b.claims(issuerID))

	before := time.Now()
	got := b.order("card-1", b.thales("request-1"))
	date, err := http.ParseTime(got.header.Get("Date"))
	if ahead := date.Sub(before); err != nil || ahead > -20*time.Second || ahead < -40*time.Second {
		t.Errorf("Date %s at %s", got.header.Get("Date"), before)
	}
	if ahead := b.operations("card-1")[0].StartTime.Sub(before); ahead > -20*time.Second || ahead < -40*time.Second {
		t.Errorf("the operation starts %v from now", ahead)
	}
}

func TestTokensAreRevoked(t *testing.T) {
	t.Parallel()
	b := newBureau(t, still)
	if err := b.management.RevokeTokens(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := b.order("card-1", b.thales("request-1")); got.status != http.StatusUnauthorized {
		t.Errorf("got %d", got.status)
	}
	b.token = b.fetchToken(b.claims(issuerID))
	b.accepted("card-1", b.thales("request-1"))
}
