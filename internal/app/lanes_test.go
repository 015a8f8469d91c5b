package app_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"cardorder/client"
	"cardorder/internal/app"
	"cardorder/internal/config"
	"cardorder/internal/d1sim"
	"cardorder/internal/local"
)

const lanes = "/v1/issuers/" + local.IssuerID + "/lanes"

// replica starts another process of the service on the same database, and returns its
// side of the API.
func (b *bank) replica() *bank {
	b.t.Helper()
	cfg := *b.env.ServiceConfig()
	service, err := app.Start(b.t.Context(), &cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := service.Stop(ctx); err != nil {
			b.t.Errorf("stopping a replica: %v", err)
		}
	})
	other := *b
	env := *b.env
	env.Ready.APIURL = service.URL("api")
	other.env = &env
	return &other
}

// action calls an action of an order or a lane; content may be "".
func (b *bank) action(path, content string, header http.Header) answer {
	b.t.Helper()
	var body []byte
	if content != "" {
		body = []byte(content)
	}
	return b.do(http.MethodPost, path, header, body)
}

// lane reads the one lane.
func (b *bank) lane() client.Lane {
	b.t.Helper()
	list, err := b.client().Lanes(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	if len(list) != 1 {
		b.t.Fatalf("the lanes are %+v", list)
	}
	return list[0]
}

func (b *bank) attentive(id, code string) bool {
	b.t.Helper()
	return slices.ContainsFunc(b.get(id).view.Attention, func(a struct{ Code string }) bool { return a.Code == code })
}

// A pause holds on all replicas, whichever was told, and harms nothing.
func TestPauseHoldsBackOrdersOnAllReplicas(t *testing.T) {
	t.Parallel()
	b := newBank(t, unforgiving())
	other := b.replica()
	b.eventually("both replicas are known", func() bool { return len(b.lane().Replicas) == 2 })
	if a := other.action(lanes+"/d1/pause", `{"reason":"D1 maintenance"}`, nil); a.status != http.StatusOK {
		t.Fatalf("pausing: %d %s", a.status, a.text)
	}
	ids := []string{b.place(b.thales("a")), other.place(b.thales("b")), b.place(b.thales("c"))}
	since := query[time.Time](b, `SELECT now()`)
	b.eventually("both replicas have looked for orders", func() bool {
		l := b.lane()
		return !slices.ContainsFunc(l.Replicas, func(r client.Replica) bool { return !r.SeenAt.After(since) })
	})
	l := b.lane()
	if l.State != client.LanePaused || l.Pause == nil || l.Pause.By != "local" || l.Pause.Reason != "D1 maintenance" || l.Stop != nil {
		t.Errorf("the lane is %+v, %+v", l, l.Pause)
	}
	if l.Backlog[0].Class != "single" || l.Backlog[0].Messages != 3 || l.Backlog[0].Due != 3 {
		t.Errorf("the backlog is %+v", l.Backlog)
	}
	if n := query[int](b, `SELECT count(*) FROM attempts`); n != 0 {
		t.Errorf("%d attempts while the lane was paused", n)
	}
	again := b.action(lanes+"/d1/pause", `{"reason":"another reason"}`, nil)
	if again.status != http.StatusOK || !strings.Contains(again.text, "D1 maintenance") {
		t.Errorf("pausing again: %d %s", again.status, again.text)
	}
	resumed, err := b.client().ResumeLane(t.Context(), client.LaneD1)
	if err != nil || resumed.State != client.LaneRunning || resumed.Pause != nil {
		t.Errorf("resumed: %+v, %v", resumed, err)
	}
	for i, id := range ids {
		b.await(id, "SHIPPED")
		b.oneCard("request-" + string(rune('a'+i)))
	}
}

// What a lane shows: the configured limits, and what each replica says.
func TestLaneShowsItsReplicas(t *testing.T) {
	t.Parallel()
	b := newBank(t, fast, func(cfg *config.Config) { cfg.Issuers[0].Sending.RatePerSecond = 500 })
	b.await(b.place(b.thales("any")), "SHIPPED")
	b.eventually("the replica has told of its lane", func() bool {
		l := b.lane()
		return len(l.Replicas) == 1 && l.Replicas[0].Sending != nil && l.Replicas[0].Asking != nil && l.Replicas[0].Concurrency == 8
	})
	l := b.lane()
	r := l.Replicas[0]
	if l.Lane != client.LaneD1 || l.State != client.LaneRunning || l.Limits != (client.LaneLimits{Concurrency: 8, RatePerSecond: 500}) ||
		len(l.Backlog) != 3 || l.Unknown+l.Refused+l.GivenUp != 0 {
		t.Errorf("the lane is %+v", l)
	}
	if r.Host == "" || r.Concurrency != 8 || r.Sending.State != "closed" || r.Asking.State != "closed" || r.Sending.Reason != "" {
		t.Errorf("the replica is %+v, %+v, %+v", r, r.Sending, r.Asking)
	}
}

// Different orders refused as if the set-up were wrong stop the lane, visibly; when the
// set-up is mended it goes on, and none of them is lost.
func TestStoppedLaneIsShownAndGoesOn(t *testing.T) {
	t.Parallel()
	b := newBank(t, unforgiving(), func(cfg *config.Config) {
		cfg.Issuers[0].Sending.StopAfterRefusals, cfg.Issuers[0].Sending.Retry404For = 3, time.Minute
	})
	b.script(d1sim.Script{Kind: d1sim.KindProduction, Action: d1sim.ActionAnswer, Status: http.StatusForbidden, Times: 1_000_000})
	var ids []string
	for i := range 5 {
		ids = append(ids, b.place(b.thales(fmt.Sprintf("stop-%d", i))))
	}
	b.eventually("the lane stops", func() bool { return b.lane().State == client.LaneStopped })
	if l := b.lane(); l.Stop == nil || l.Stop.Reason == "" || l.Stop.NextProbeAt.IsZero() || l.Stop.At.IsZero() || l.Pause != nil {
		t.Errorf("the stop is %+v", l.Stop)
	}
	// A pause on top of it is what is shown, beside the stop.
	if l, err := b.client().PauseLane(t.Context(), client.LaneD1, "looking into it"); err != nil || l.State != client.LanePaused || l.Stop == nil {
		t.Errorf("paused: %+v, %v", l, err)
	}
	b.eventually("the metrics tell of both", func() bool { // they may be as old as their reading took
		text := b.metrics()
		return strings.Contains(text, `cardorder_lane_paused{issuer="ISSUER0001"} 1`) && strings.Contains(text, `cardorder_lane_stopped{issuer="ISSUER0001"} 1`)
	})
	if err := b.env.Management.ClearScripts(t.Context()); err != nil {
		t.Fatal(err)
	}
	if l, err := b.client().ResumeLane(t.Context(), client.LaneD1); err != nil || l.Pause != nil {
		t.Errorf("resumed: %+v, %v", l, err)
	}
	for i, id := range ids {
		b.await(id, "SHIPPED")
		b.oneCard(fmt.Sprintf("request-stop-%d", i))
	}
	b.eventually("the lane runs", func() bool { l := b.lane(); return l.State == client.LaneRunning && l.Stop == nil })
}

// A refresh finds what lost notifications would have told.
func TestRefreshAdoptsWhatNotificationsWouldHaveTold(t *testing.T) {
	t.Parallel()
	sim := unforgiving()
	sim.HoldNotifications = true
	b := newBank(t, sim)
	id := b.place(b.thales("lost"))
	b.await(id, "SUBMITTED")
	b.wait(d1sim.Condition{Cards: 1, Status: "CARD_SHIPPED"})
	before := b.get(id)
	a := b.action(orders+"/"+id+"/refresh", "", http.Header{"If-Match": {before.header.Get("ETag")}})
	if a.status != http.StatusAccepted || a.view.Status != "SUBMITTED" || !strings.Contains(a.text, `"asking":true`) || a.view.Version != before.view.Version+1 {
		t.Errorf("refreshing: %d %s", a.status, a.text)
	}
	b.await(id, "SHIPPED")
	b.eventually("nothing is asked any more", func() bool { return !strings.Contains(b.get(id).text, `"asking"`) })
	timeline, err := b.client().Timeline(t.Context(), id)
	if err != nil || !slices.ContainsFunc(timeline, func(e client.TimelineEntry) bool {
		return e.Event != nil && e.Event.Type == "refresh-requested" && e.Event.Actor == "local" && e.Event.Cause == "request"
	}) {
		t.Errorf("the timeline tells not who asked: %v, %v", timeline, err)
	}
	// Of an order that has arrived too, and twice.
	for range 2 {
		if o, err := b.client().Refresh(t.Context(), id); err != nil || !o.Asking || o.Status != client.StatusShipped {
			t.Errorf("refreshing again: %+v, %v", o, err)
		}
	}
	b.eventually("that is over too", func() bool { return !strings.Contains(b.get(id).text, `"asking"`) })
	b.oneCard("request-lost")
	b.noGaps(id)
}

// D1 is not asked about what it cannot have heard of.
func TestRefreshOfAnUnsentOrder(t *testing.T) {
	t.Parallel()
	b := newBank(t, fast)
	if _, err := b.client().PauseLane(t.Context(), client.LaneD1, "to keep it here"); err != nil {
		t.Fatal(err)
	}
	id := b.place(b.thales("waiting"))
	if _, err := b.client().Refresh(t.Context(), id); !isProblem(err, client.ProblemNotSent) {
		t.Errorf("refreshing: %v", err)
	}
	if _, err := b.client().Retry(t.Context(), id, client.Retry{}); !isProblem(err, client.ProblemNotRetryable) {
		t.Errorf("retrying: %v", err)
	}
	if a := b.get(id); a.view.Version != 1 {
		t.Errorf("the order changed: %s", a.text)
	}
}

// However an order came to a stop, a retry makes one card of it.
func TestRetryMakesOneCard(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		script    d1sim.Script
		attention string
		status    word // before
	}{
		"rejected": {
			d1sim.Script{Kind: d1sim.KindProduction, Action: d1sim.ActionReject}, "rejected", "REJECTED",
		},
		"given up": {
			d1sim.Script{Kind: d1sim.KindProduction, Action: d1sim.ActionAnswer, Status: http.StatusForbidden, Times: 1_000_000}, "given-up", "ACCEPTED",
		},
		"unknown after a conflict": {
			d1sim.Script{Kind: d1sim.KindProduction, Action: d1sim.ActionAnswer, Status: http.StatusConflict}, "conflict", "OUTCOME_UNKNOWN",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sim := unforgiving()
			sim.UnknownCard = d1sim.UnknownCardEmpty
			b := newBank(t, sim, func(cfg *config.Config) {
				cfg.Issuers[0].Sending.GiveUpAfter, cfg.Issuers[0].Sending.Retry404For = time.Second, 900*time.Millisecond
			})
			b.script(test.script)
			id := b.place(b.thales("again"))
			b.eventually("it came to a stop", func() bool { return b.attentive(id, test.attention) })
			if err := b.env.Management.ClearScripts(t.Context()); err != nil {
				t.Fatal(err)
			}
			before := b.get(id)
			if before.view.Status != test.status || b.cards("request-again") != 0 {
				t.Fatalf("it is %s, with %d cards", before.text, b.cards("request-again"))
			}
			jwe := b.jwe()
			var retried *client.Order
			b.eventually("it is retried", func() bool {
				before = b.get(id) // an answer of D1 may come meanwhile
				var err error
				retried, err = b.client().Retry(t.Context(), id, client.Retry{EncryptedData: jwe, Version: before.view.Version})
				if err != nil && !isProblem(err, client.ProblemVersionMismatch) {
					t.Fatal(err)
				}
				return err == nil
			})
			if retried.ID != id || retried.IssuerRequestID != "request-again" || retried.Version <= before.view.Version ||
				slices.ContainsFunc(retried.Attention, func(a client.Attention) bool { return a.Code == test.attention }) {
				t.Errorf("retried: %+v", retried)
			}
			if _, err := b.client().Retry(t.Context(), id, client.Retry{Version: before.view.Version}); !isProblem(err, client.ProblemVersionMismatch) {
				t.Errorf("the same call again: %v", err)
			}
			b.await(id, "SHIPPED")
			b.oneCard("request-again")
			b.noGaps(id)
			timeline, err := b.client().Timeline(t.Context(), id)
			if err != nil || !slices.ContainsFunc(timeline, func(e client.TimelineEntry) bool {
				return e.Event != nil && e.Event.Type == "retry-requested" && e.Event.Actor == "local" && strings.Contains(string(e.Event.Detail), "cardDataReplaced")
			}) {
				t.Errorf("the timeline tells not who retried it: %v, %v", timeline, err)
			}
			if text, err := json.Marshal(timeline); err != nil || strings.Contains(string(text), jwe) {
				t.Errorf("the timeline shows card data: %v", err)
			}
			if _, err := b.client().Retry(t.Context(), id, client.Retry{}); !isProblem(err, client.ProblemNotRetryable) {
				t.Errorf("retrying what has arrived: %v", err)
			}
		})
	}
}

// The duplicate guard is asked again: another order may have made the card meanwhile.
func TestRetryPassesTheDuplicateGuard(t *testing.T) {
	t.Parallel()
	b := newBank(t, unforgiving())
	b.script(d1sim.Script{Kind: d1sim.KindProduction, Action: d1sim.ActionReject, IssuerRequestID: "request-first"})
	first := b.place(b.thales("first"))
	b.await(first, "REJECTED")
	second := b.place(b.thales("first").with(body{"issuerRequestId": "request-second", "duplicateOverride": body{"reason": "the first was refused"}}))
	b.await(second, "SHIPPED")
	retry := orders + "/" + first + "/retry"
	a := b.action(retry, "", nil)
	if a.status != http.StatusConflict || a.view.Type != client.ProblemDuplicateOrder || a.view.ConflictingOrder != second {
		t.Errorf("retrying: %d %s", a.status, a.text)
	}
	if b.get(first).view.Status != "REJECTED" {
		t.Error("a refused retry changed the order")
	}
	if a := b.action(retry, `{"duplicateOverride":{"reason":"both are wanted"}}`, nil); a.status != http.StatusOK || a.view.Status == "REJECTED" { // it may be sent already
		t.Errorf("with an override: %d %s", a.status, a.text)
	}
	b.await(first, "SHIPPED")
	b.oneCard("request-first")
	b.oneCard("request-second")
}

// If-Match is looked at before anything is done.
func TestActionsHonourIfMatch(t *testing.T) {
	t.Parallel()
	b := newBank(t, fast)
	id := b.place(b.thales("match"))
	now := b.await(id, "SHIPPED").header.Get("ETag")
	for match, want := range map[string]int{
		now: 202, "*": 202, `"1", ` + now: 202, // in this order or any other: a refresh makes a new version
	} {
		current := b.get(id).header.Get("ETag")
		if a := b.action(orders+"/"+id+"/refresh", "", http.Header{"If-Match": {strings.ReplaceAll(match, now, current)}}); a.status != want {
			t.Errorf("If-Match %s with %s: %d %s", match, current, a.status, a.text)
		}
	}
	current := b.get(id).header.Get("ETag")
	for _, match := range []string{`"1"`, "W/" + current, `"1", "2"`, `"x"`} {
		for _, action := range []string{"/refresh", "/retry"} {
			a := b.action(orders+"/"+id+action, "", http.Header{"If-Match": {match}})
			if a.status != http.StatusPreconditionFailed || a.view.Type != client.ProblemVersionMismatch {
				t.Errorf("%s with If-Match %s: %d %s", action, match, a.status, a.text)
			}
		}
	}
	nobody := orders + "/01990a68-77ec-74e1-b66d-6c97bb9262a5"
	for _, match := range []string{"", "*", `"1"`, `W/"1"`} {
		header := http.Header{}
		if match != "" {
			header.Set("If-Match", match)
		}
		for _, action := range []string{"/refresh", "/retry"} {
			if a := b.action(nobody+action, "", header); a.status != http.StatusNotFound || a.view.Type != client.ProblemUnknownOrder {
				t.Errorf("%s of nobody with If-Match %s: %d %s", action, match, a.status, a.text)
			}
		}
	}
}

// Bodies are as strict as an order's, and every fault is told at once.
func TestActionsRefuseWhatIsWrong(t *testing.T) {
	t.Parallel()
	b := newBank(t, fast)
	id := b.place(b.thales("strict"))
	shipped := b.await(id, "SHIPPED")
	match := http.Header{"If-Match": {"3"}}
	for _, test := range []struct {
		path, content string
		header        http.Header
		status        int
		want          string // the faults, or the type of the problem
	}{
		{lanes + "/d1/pause", "", nil, 400, "/reason required"},
		{lanes + "/d1/pause", `{"reason":"` + strings.Repeat("x", 201) + `","until":"noon"}`, nil, 400, "/reason too-long, /until unknown-member"},
		{lanes + "/d1/pause", `{"reason":"line\nbreak"}`, nil, 400, "/reason invalid-character"},
		{lanes + "/d1/pause", `{"reason":"the card ` + testPAN + `"}`, nil, 400, "/reason card-number"},
		{lanes + "/d1/pause", `{"reason":"` + strings.Repeat("x", 200_000) + `"}`, nil, 413, "too-large"},
		{lanes + "/d1/pause", `{"reason":"x"}`, http.Header{"Content-Type": {"text/plain"}}, 415, "unsupported-media-type"},
		{lanes + "/d1/pause?reason=x", `{"reason":"x"}`, nil, 400, " unknown-member"},
		{lanes + "/d2/pause", `{"reason":"x"}`, nil, 404, "unknown-lane"},
		{lanes + "/d2/resume", "", nil, 404, "unknown-lane"},
		{lanes + "/d1/resume", `{"reason":"x"}`, nil, 400, "/reason unknown-member"},
		{orders + "/" + id + "/refresh", `{"now":true}`, match, 400, "/now unknown-member, If-Match invalid-format"},
		{orders + "/" + id + "/retry", `{"encryptedData":"x","duplicateOverride":{},"sensitiveData":{"pan":"` + testPAN + `"}}`, match, 400,
			"/encryptedData invalid-format, /duplicateOverride/reason required, /sensitiveData unknown-member, If-Match invalid-format"},
		{orders + "/" + id + "/retry", `{"encryptedData":"eyJhbGciOiJub25lIn0.a.b.c.d"}`, nil, 400, "/encryptedData invalid-format"},
		{orders + "/nonsense/retry", "", nil, 404, "unknown-order"},
	} {
		a := b.action(test.path, test.content, test.header)
		got := strings.TrimPrefix(a.view.Type, "urn:cardorder:problem:")
		if len(a.view.Errors) > 0 {
			var list []string
			for _, f := range a.view.Errors {
				list = append(list, f.Pointer+f.Header+" "+f.Code)
			}
			got = strings.Join(list, ", ")
		}
		if a.status != test.status || got != test.want || strings.Contains(a.text, testPAN) {
			t.Errorf("%s with %.100q: %d %s, want %d %s", test.path, test.content, a.status, a.text, test.status, test.want)
		}
	}
	for _, content := range []string{"{}", " { } "} { // an empty object is no body
		if a := b.action(lanes+"/d1/resume", content, nil); a.status != http.StatusOK {
			t.Errorf("resuming with %q: %d %s", content, a.status, a.text)
		}
	}
	if l := b.lane(); l.State != client.LaneRunning {
		t.Errorf("a refused call changed the lane: %+v", l)
	}
	if now := b.get(id); now.view.Version != shipped.view.Version {
		t.Errorf("a refused call changed the order: %s", now.text)
	}
}

// Looking is for those who read, acting for those who operate, both for their issuers only.
func TestWhoMayOperate(t *testing.T) {
	t.Parallel()
	tokens := map[string][]string{"reader": {"orders:read"}, "writer": {"orders:read", "orders:write"}, "operator": {"orders:operate"}}
	b := newBank(t, fast, func(cfg *config.Config) {
		for name, scopes := range tokens {
			hash := sha256.Sum256([]byte(name))
			cfg.Clients = append(cfg.Clients, config.Client{
				Name: name, TokenSHA256: config.NewSecret(hex.EncodeToString(hash[:])), Scopes: scopes, Issuers: []string{local.IssuerID},
			})
		}
		hash := sha256.Sum256([]byte("stranger"))
		cfg.Clients = append(cfg.Clients, config.Client{
			Name: "stranger", TokenSHA256: config.NewSecret(hex.EncodeToString(hash[:])), Scopes: []string{"orders:read", "orders:operate"},
		})
	})
	b.script(d1sim.Script{Kind: d1sim.KindProduction, Action: d1sim.ActionReject})
	id := b.place(b.thales("who"))
	b.await(id, "REJECTED")
	for _, test := range []struct {
		method, path, content string
		allowed               int // its status for whoever may
		who                   []string
	}{
		{http.MethodGet, lanes, "", 200, []string{"reader", "writer"}},
		{http.MethodPost, lanes + "/d1/pause", `{"reason":"x"}`, 200, []string{"operator"}},
		{http.MethodPost, lanes + "/d1/resume", "", 200, []string{"operator"}},
		{http.MethodPost, orders + "/" + id + "/retry", "", 200, []string{"operator"}},
		{http.MethodPost, orders + "/" + id + "/refresh", "", 202, []string{"operator"}},
	} {
		for _, name := range []string{"reader", "writer", "stranger", "nobody", "operator"} {
			if strings.HasSuffix(test.path, "/refresh") && name == "operator" {
				b.await(id, "SHIPPED") // the retry's
			}
			var content []byte
			if test.content != "" {
				content = []byte(test.content)
			}
			a := b.do(test.method, test.path, http.Header{"Authorization": {"Bearer " + name}}, content)
			want := http.StatusForbidden
			switch {
			case name == "nobody":
				want = http.StatusUnauthorized
			case slices.Contains(test.who, name):
				want = test.allowed
			}
			if a.status != want {
				t.Errorf("%s %s by the %s: %d %s, want %d", test.method, test.path, name, a.status, a.text, want)
			}
		}
	}
}
