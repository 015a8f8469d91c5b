package app_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"cardorder/client"
	"cardorder/internal/config"
	"cardorder/internal/d1sim"
)

// The rules of sending, one after the other, as a bank meets them: through the API on
// one side and the simulator on the other. What a lost answer leads to stands in
// faults_test.go.

// calls lists what D1 was asked about a card, and how the simulator answered:
// "order 202", "question 404"; 0 for a connection that was cut.
func (b *bank) calls(cardID string) []string {
	b.t.Helper()
	var calls []string
	for _, r := range b.requests(d1sim.Filter{CardID: cardID}) {
		what := map[d1sim.Kind]string{d1sim.KindProduction: "order", d1sim.KindStatus: "question", d1sim.KindChange: "change"}[r.Kind]
		calls = append(calls, fmt.Sprintf("%s %d", what, r.Status))
	}
	return calls
}

func (b *bank) requests(f d1sim.Filter) []d1sim.Request {
	b.t.Helper()
	history, err := b.env.Management.History(b.t.Context(), f)
	if err != nil {
		b.t.Fatal(err)
	}
	return history
}

// sendings are the calls that may have made a card.
func sendings(calls []string) int {
	n := 0
	for _, c := range calls {
		if strings.HasPrefix(c, "order ") {
			n++
		}
	}
	return n
}

// attempts lists what was made of D1's answers about an order: "submit unknown timeout".
func (b *bank) attempts(id string) []string {
	b.t.Helper()
	timeline, err := b.client().Timeline(b.t.Context(), id)
	if err != nil {
		b.t.Fatal(err)
	}
	var list []string
	for _, e := range timeline {
		if a := e.Attempt; a != nil {
			list = append(list, a.Kind+" "+a.Outcome+" "+a.Reason)
		}
	}
	return list
}

// needs tells whether a human is called to an order for a reason.
func (a answer) needs(code string) bool {
	return slices.ContainsFunc(a.view.Attention, func(a struct{ Code string }) bool { return a.Code == code })
}

// nothingLeft waits until there is nothing to send and nothing to ask.
func (b *bank) nothingLeft() {
	b.t.Helper()
	b.eventually("every message is done", func() bool { return query[int](b, `SELECT count(*) FROM outbox`) == 0 })
}

// with changes how the service sends.
func with(change func(*config.Sending)) func(*config.Config) {
	return func(cfg *config.Config) { change(&cfg.Issuers[0].Sending) }
}

// asking is a simulator on which a repeat would show, and which says of an unknown card
// that it has no operations.
func asking() d1sim.Settings {
	s := unforgiving()
	s.UnknownCard = d1sim.UnknownCardEmpty
	return s
}

var html = map[string]string{"Content-Type": "text/html"}

// Rule 5: what an answer to an order means. Each row is an order of its own, all of
// them under way at once, so that none of these answers holds up another order.
func TestWhatAnAnswerMeans(t *testing.T) {
	t.Parallel()
	const callTimeout = 10 * time.Second // much more than an answer takes on a busy machine
	b := newBank(t, asking(), with(func(s *config.Sending) {
		s.Concurrency, s.CallTimeout = 40, callTimeout
		s.BreakerThreshold, s.StopAfterRefusals = 1000, 1000 // one order's trouble only
	}))
	elsewhere := map[string]string{"Location": b.env.D1URL + "/elsewhere"}
	late := d1sim.Duration(3 * callTimeout / 2)
	answer := func(status int, body string, headers map[string]string) d1sim.Script {
		return d1sim.Script{Action: d1sim.ActionAnswer, Status: status, Body: body, Headers: headers}
	}
	accepted := func(status int, body string, headers map[string]string) d1sim.Script {
		return d1sim.Script{Action: d1sim.ActionAnswerAfter, Status: status, Body: body, Headers: headers}
	}
	cases := []struct {
		name   string
		script d1sim.Script
		means  string // outcome and reason of the first attempt
		sent   int    // how often the order is sent
		status word   // where it ends; "" means SHIPPED, with one card
	}{
		// Taken: any 2xx. Without a usable operationId the operation is adopted later.
		{"202", d1sim.Script{Action: d1sim.ActionAnswerAfter}, "taken accepted", 1, ""},
		{"202 as text/plain", accepted(0, "", map[string]string{"Content-Type": "text/plain"}), "taken accepted", 1, ""},
		{"202 without operationId", d1sim.Script{Action: d1sim.ActionNoOperationID}, "taken accepted-without-id", 1, ""},
		{"202 with an operationId that is none", accepted(202, `{"operationId":17}`, nil), "taken accepted-without-id", 1, ""},
		{"202 that is not JSON", accepted(202, "<html>fine</html>", html), "taken accepted-without-id", 1, ""},
		{"202 of 10 MB", d1sim.Script{Action: d1sim.ActionAnswerAfter, Size: 10 << 20}, "taken accepted-without-id", 1, ""},
		{"202 of a byte a second", d1sim.Script{Action: d1sim.ActionAnswerAfter, Drip: d1sim.Duration(time.Second)}, "taken accepted-without-id", 1, ""},
		{"200", accepted(200, "", nil), "taken accepted-without-id", 1, ""},
		{"204", accepted(204, "", nil), "taken accepted-without-id", 1, ""},

		// Unknown, and D1 has it: asking finds it, and it is never sent again.
		{"500 with a D1 body, accepted", d1sim.Script{Action: d1sim.ActionErrorAfter}, "unknown server-error", 1, ""},
		{"502 with HTML, accepted", accepted(502, "<html>Bad Gateway</html>", html), "unknown server-error", 1, ""},
		{"302, accepted", accepted(302, "", elsewhere), "unknown redirect", 1, ""},
		{"307, accepted", accepted(307, "", elsewhere), "unknown redirect", 1, ""},
		{"no answer in time, accepted", d1sim.Script{Action: d1sim.ActionDelay, Delay: late}, "unknown timeout", 1, ""},
		{"a lost answer", d1sim.Script{Action: d1sim.ActionLostAfter}, "unknown cut", 1, ""},

		// Unknown, and D1 does not have it: it is sent again once D1 has said so.
		{"500 with a D1 body", answer(500, `{"error":"internal error"}`, nil), "unknown server-error", 2, ""},
		{"500 of 10 MB", d1sim.Script{Action: d1sim.ActionAnswer, Status: 500, Body: `{"error":"x"}`, Size: 10 << 20}, "unknown server-error", 2, ""},
		{"502 with HTML", answer(502, "<html>Bad Gateway</html>", html), "unknown server-error", 2, ""},
		{"503", answer(503, "", nil), "unknown unavailable", 2, ""},
		{"504", answer(504, "", nil), "unknown server-error", 2, ""},
		{"408", answer(408, "", nil), "unknown request-timeout", 2, ""},
		{"422", answer(422, `{"error":"x"}`, nil), "unknown client-error", 2, ""},
		{"302", answer(302, "", elsewhere), "unknown redirect", 2, ""},
		{"308", answer(308, "", elsewhere), "unknown redirect", 2, ""},
		{"no answer in time", d1sim.Script{Action: d1sim.ActionAnswer, Status: 500, Delay: late}, "unknown timeout", 2, ""},
		{"a lost request", d1sim.Script{Action: d1sim.ActionLostBefore}, "unknown cut", 2, ""},

		// Certainly not taken: tried again as it is, without a question.
		{"425", answer(425, "", nil), "not-taken too-early", 2, ""},
		{"429", answer(429, "", nil), "not-taken rate-limited", 2, ""},

		// Refused: D1 itself names what is wrong with the order.
		{"400", d1sim.Script{Action: d1sim.ActionReject}, "refused refused", 1, "REJECTED"},
		{"400 PARSING_ERROR", d1sim.Script{Action: d1sim.ActionReject, ErrorCode: "PARSING_ERROR"}, "refused refused", 1, "REJECTED"},
	}
	name := strings.NewReplacer(" ", "-", ",", "", "/", "-").Replace
	ids := make([]string, len(cases))
	for i, c := range cases {
		script := c.script
		script.Kind, script.IssuerRequestID = d1sim.KindProduction, "request-"+name(c.name)
		b.script(script)
		ids[i] = b.place(b.thales(name(c.name)))
	}
	for i, c := range cases {
		id, status, cards := ids[i], c.status, 0
		if status == "" {
			status, cards = "SHIPPED", 1
		}
		a := b.await(id, status)
		b.eventually("the order's message is done", func() bool {
			return query[int](b, `SELECT count(*) FROM outbox WHERE order_id = $1`, id) == 0
		})
		b.eventually("the answer is in the timeline", func() bool { return len(b.attempts(id)) > 0 })
		if got := b.attempts(id)[0]; got != "submit "+c.means {
			t.Errorf("%s: taken as %q, want %q", c.name, got, c.means)
		}
		if n := b.cards("request-" + name(c.name)); n != cards {
			t.Errorf("%s: %d cards, want %d", c.name, n, cards)
		}
		calls := b.calls("card-" + name(c.name))
		n := sendings(calls)
		if n != c.sent {
			t.Errorf("%s: sent %d times, want %d: %v", c.name, n, c.sent, calls)
		}
		if strings.HasPrefix(c.means, "unknown") && n > 1 && len(calls) < n+2 {
			t.Errorf("%s: sent again without two questions: %v", c.name, calls)
		}
		if cards == 0 && !a.needs("rejected") {
			t.Errorf("%s: attention %v", c.name, a.view.Attention)
		}
		if a = b.get(id); cards == 1 && (len(a.view.Attention) > 0 || a.view.OperationID == "") {
			t.Errorf("%s: operation %q, attention %v", c.name, a.view.OperationID, a.view.Attention)
		}
		b.noGaps(id)
	}
	// The slow ones held nobody up.
	if n := query[int](b, `SELECT count(*) FROM attempts WHERE outcome = 'taken' AND created_at <
		(SELECT min(created_at) FROM attempts WHERE reason = 'timeout')`); n < 5 {
		t.Errorf("%d orders were taken before the first slow answer", n)
	}
	// Rule 12: redirects are never followed.
	if n := b.requests(d1sim.Filter{Kind: d1sim.KindOther}); len(n) > 0 {
		t.Errorf("redirects were followed: %+v", n)
	}
}

// Rule 5: a token may end before its time, and every call that carries it gets 401. It
// is fetched anew within the same attempt: no order and no lane is in trouble.
func TestTokenThatEndsEarly(t *testing.T) {
	t.Parallel()
	sim := unforgiving()
	sim.TokenLifetime = d1sim.Duration(5 * time.Second) // so that it also ends in time, now and then
	// No answer comes too late, however busy the machine is.
	b := newBank(t, sim, func(cfg *config.Config) { cfg.Issuers[0].Sending.CallTimeout = patience })
	for i := range 5 {
		if err := b.env.Management.RevokeTokens(t.Context()); err != nil {
			t.Fatal(err)
		}
		id := b.place(b.thales(fmt.Sprintf("token-%d", i)))
		b.await(id, "SHIPPED")
		if got := b.attempts(id); len(got) != 1 || got[0] != "submit taken accepted" {
			t.Errorf("attempts %v", got)
		}
	}
	if n := query[int](b, `SELECT count(*) FROM attempts`); n != 5 {
		t.Errorf("%d attempts for 5 orders", n)
	}
	if tokens := b.requests(d1sim.Filter{Kind: d1sim.KindToken}); len(tokens) < 5 {
		t.Errorf("%d tokens were fetched: the test proves nothing", len(tokens))
	}
}

// pause and resume are what an operator does.
func (b *bank) pause() {
	b.t.Helper()
	if a := b.action(lanes+"/d1/pause", `{"reason":"a test"}`, nil); a.status != http.StatusOK {
		b.t.Fatalf("pausing: %d %s", a.status, a.text)
	}
}

func (b *bank) resume() {
	b.t.Helper()
	if a := b.action(lanes+"/d1/resume", "", nil); a.status != http.StatusOK {
		b.t.Fatalf("resuming: %d %s", a.status, a.text)
	}
}

// breaker is that of the one replica for sending, as it last told of it.
func (b *bank) breaker() client.Breaker {
	b.t.Helper()
	if l := b.lane(); len(l.Replicas) == 1 && l.Replicas[0].Sending != nil {
		return *l.Replicas[0].Sending
	}
	return client.Breaker{State: "closed"}
}

// crowd places orders that are named after it.
func (b *bank) crowd(name string, n int) (ids []string) {
	b.t.Helper()
	for i := range n {
		ids = append(ids, b.place(b.thales(fmt.Sprintf("%s-%d", name, i))))
	}
	return ids
}

// allShipped waits until a crowd has its cards: one each, no human is called, and none
// was rejected on its way.
func (b *bank) allShipped(name string, ids []string) {
	b.t.Helper()
	for i, id := range ids {
		if a := b.await(id, "SHIPPED"); len(a.view.Attention) > 0 {
			b.t.Errorf("%s-%d needs %v", name, i, a.view.Attention)
		}
	}
	made := b.made()
	for i := range ids {
		if n := made[fmt.Sprintf("request-%s-%d", name, i)]; n != 1 {
			b.t.Errorf("%s-%d: %d cards", name, i, n)
		}
	}
	if n := query[int](b, `SELECT count(*) FROM order_events WHERE status = 'REJECTED' AND order_id = ANY ($1)`, ids); n != 0 {
		b.t.Errorf("%d of %s were rejected in between", n, name)
	}
	b.noGaps(ids[0])
}

// Rule 3: Retry-After is obeyed in both of its forms, and by the whole lane: other
// orders of the issuer would only get the same answer. A date counts from D1's own
// clock, which may be wrong.
func TestRetryAfterHoldsTheLaneBack(t *testing.T) {
	t.Parallel()
	const skew = 90 * time.Second
	for _, form := range []string{"seconds", "date"} {
		t.Run(form, func(t *testing.T) {
			t.Parallel()
			sim := unforgiving()
			sim.ClockSkew = d1sim.Duration(skew)
			b := newBank(t, sim)
			header, until := "2", time.Now().Add(skew+3*time.Second).Truncate(time.Second)
			if form == "date" {
				header = until.UTC().Format(http.TimeFormat)
			}
			b.script(d1sim.Script{
				Kind: d1sim.KindProduction, Action: d1sim.ActionAnswer, Status: http.StatusTooManyRequests,
				Headers: map[string]string{"Retry-After": header}, IssuerRequestID: "request-first",
			})
			first := b.place(b.thales("first"))
			b.eventually("the answer is stored", func() bool { return len(b.attempts(first)) == 1 })
			second := b.place(b.thales("second"))
			for _, id := range []string{first, second} {
				if a := b.await(id, "SHIPPED"); len(a.view.Attention) > 0 {
					t.Errorf("attention %v", a.view.Attention)
				}
			}
			sent := b.requests(d1sim.Filter{Kind: d1sim.KindProduction})
			earliest := sent[0].Time.Add(2 * time.Second)
			if form == "date" {
				earliest = until.Add(-skew - time.Second) // D1's Date is told to the second
			}
			for _, r := range sent[1:] {
				if r.Time.Before(earliest) {
					t.Errorf("%s was sent %v too early", r.IssuerRequestID, earliest.Sub(r.Time))
				}
			}
		})
	}
}

// Rule 6: a question whose answer is no good proves nothing: the order stays unknown
// and is asked about again, and in the end it is adopted.
func TestBadAnswersToQuestions(t *testing.T) {
	t.Parallel()
	const callTimeout = 10 * time.Second // much more than an answer takes on a busy machine
	sim := asking()
	sim.HoldNotifications = true // only questions can tell
	b := newBank(t, sim, with(func(s *config.Sending) {
		s.Concurrency, s.CallTimeout, s.BreakerThreshold = 40, callTimeout, 1000
	}))
	elsewhere := map[string]string{"Location": b.env.D1URL + "/elsewhere"}
	cases := []struct {
		name   string
		script d1sim.Script
		means  string // outcome and reason of the first question
	}{
		{"not JSON", d1sim.Script{Action: d1sim.ActionAnswer, Status: 200, Body: "<html>fine</html>", Headers: html}, "unreadable"},
		{"JSON of another shape", d1sim.Script{Action: d1sim.ActionAnswer, Status: 200, Body: `["fine"]`}, "unreadable"},
		{"10 MB", d1sim.Script{Action: d1sim.ActionAnswer, Status: 200, Body: `{"operations":[]}`, Size: 10 << 20}, "unreadable"},
		{"a byte a second", d1sim.Script{Action: d1sim.ActionAnswer, Status: 200, Body: `{"operations":[]}`, Drip: d1sim.Duration(time.Second)}, "unreadable"},
		{"redirect", d1sim.Script{Action: d1sim.ActionAnswer, Status: 302, Headers: elsewhere}, "redirect"},
		{"502 with HTML", d1sim.Script{Action: d1sim.ActionAnswer, Status: 502, Body: "<html>no</html>", Headers: html}, "server-error"},
		{"429", d1sim.Script{Action: d1sim.ActionAnswer, Status: 429}, "rate-limited"},
		{"403", d1sim.Script{Action: d1sim.ActionAnswer, Status: 403}, "refused"},
		{"no answer in time", d1sim.Script{Action: d1sim.ActionDelay, Delay: d1sim.Duration(3 * callTimeout / 2)}, "timeout"},
	}
	name := strings.NewReplacer(" ", "-").Replace
	ids := make([]string, len(cases))
	for i, c := range cases {
		script := c.script
		script.Kind, script.CardID = d1sim.KindStatus, "card-"+name(c.name)
		b.script(script)
		b.script(d1sim.Script{Kind: d1sim.KindProduction, Action: d1sim.ActionLostAfter, CardID: script.CardID})
		ids[i] = b.place(b.thales(name(c.name)))
	}
	for i, c := range cases {
		var a answer
		b.eventually(c.name+": the order has its operation", func() bool {
			a = b.get(ids[i])
			return a.view.OperationID != ""
		})
		attempts := b.attempts(ids[i])
		if !strings.HasPrefix(attempts[1], "ask ") || !strings.HasSuffix(attempts[1], " "+c.means) {
			t.Errorf("%s: the question's answer was taken as %q, want %q", c.name, attempts[1], c.means)
		}
		b.oneCard("request-" + name(c.name))
		if len(a.view.Attention) > 0 {
			t.Errorf("%s: attention %v", c.name, a.view.Attention)
		}
	}
	if n := b.requests(d1sim.Filter{Kind: d1sim.KindOther}); len(n) > 0 {
		t.Errorf("redirects were followed: %+v", n)
	}
}

// Rule 6: what could be the order's, or another's, is for a human to tell. Nothing is
// sent as long as nobody knows.
func TestAmbiguousOperationsCallForAHuman(t *testing.T) {
	t.Parallel()
	sim := asking()
	sim.HoldNotifications = true
	b := newBank(t, sim)
	twins := string(mustJSON(t, body{"operations": []body{
		{"operationId": "one", "operation": "PRODUCE", "status": "PENDING", "cardId": "card-twins", "startTime": time.Now().Add(time.Second)},
		{"operationId": "two", "operation": "PRODUCE", "status": "PENDING", "cardId": "card-twins", "startTime": time.Now().Add(time.Second)},
	}}))
	b.script(d1sim.Script{Kind: d1sim.KindProduction, Action: d1sim.ActionLostBefore})
	b.script(d1sim.Script{Kind: d1sim.KindStatus, Action: d1sim.ActionAnswer, Status: 200, Body: twins, Times: 1000})
	id := b.place(b.thales("twins"))
	b.eventually("a human is called", func() bool { return b.get(id).needs("ambiguous-operation") })
	b.wait(d1sim.Condition{Kind: d1sim.KindStatus, Requests: 8}) // more than would do to send it again
	if n := b.cards("request-twins"); n != 0 {
		t.Errorf("sent again: %d cards", n)
	}
	// Thales clears it up: none of the two is ours.
	if err := b.env.Management.ClearScripts(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.eventually("the order is sent", func() bool { return b.get(id).view.Status == "SUBMITTED" })
	b.oneCard("request-twins")
}

// Rule 7: a refusal that may be the set-up's fault sets the order aside. It is the
// order's own fault once D1 accepts another one; a 404 needs some time beside.
func TestRefusedOrdersAreRejectedBesideAcceptedOnes(t *testing.T) {
	t.Parallel()
	b := newBank(t, unforgiving(), with(func(s *config.Sending) { s.Retry404For = 500 * time.Millisecond }))
	for name, s := range map[string]d1sim.Script{
		"403":  {Action: d1sim.ActionAnswer, Status: 403},
		"404":  {Action: d1sim.ActionAnswer, Status: 404},
		"key":  {Action: d1sim.ActionReject, ErrorCode: "CRYPTO_ERROR"},
		"wall": {Action: d1sim.ActionAnswer, Status: 400, Body: "<html>no</html>", Headers: html},
	} {
		s.Kind, s.Times, s.IssuerRequestID = d1sim.KindProduction, 1000, "request-"+name
		b.script(s)
	}
	bad := make(map[string]string)
	for _, name := range []string{"403", "404", "key", "wall"} {
		bad[name] = b.place(b.thales(name))
	}
	for name, id := range bad {
		b.eventually(name+" was refused several times", func() bool { return len(b.attempts(id)) > 2 })
		if a := b.get(id); a.view.Status != "ACCEPTED" {
			t.Errorf("%s is %s, with nothing that D1 accepted to compare it with", name, a.view.Status)
		}
	}
	// Accepted orders go on coming: one that is on its way itself when another is accepted
	// is judged by the next, and the 404 may be too young at first.
	var good []string
	for name, id := range bad {
		b.eventually(name+" is rejected", func() bool {
			i := len(good)
			good = append(good, b.place(b.thales(fmt.Sprintf("good-%d", i))))
			b.await(good[i], "SHIPPED")
			return b.get(id).view.Status == "REJECTED"
		})
		if a := b.get(id); !a.needs("rejected") || b.cards("request-"+name) != 0 {
			t.Errorf("%s: attention %v, %d cards", name, a.view.Attention, b.cards("request-"+name))
		}
		b.noGaps(id)
	}
	b.allShipped("good", good)
	b.nothingLeft()
}

// Rule 7: a card may be registered at D1 a moment after its order: until retry404For
// has passed a 404 rejects nothing, whatever else D1 accepts.
func TestMended404GoesThrough(t *testing.T) {
	t.Parallel()
	b := newBank(t, unforgiving(), with(func(s *config.Sending) { s.Retry404For = time.Minute }))
	b.script(d1sim.Script{Kind: d1sim.KindProduction, Action: d1sim.ActionAnswer, Status: 404, Times: 3, IssuerRequestID: "request-late-0"})
	late := b.crowd("late", 1)
	for i := range 2 {
		b.eventually("it was refused", func() bool { return len(b.attempts(late[0])) > i })
		b.await(b.place(b.thales(fmt.Sprintf("other-%d", i))), "SHIPPED")
	}
	b.allShipped("late", late)
	if n := sendings(b.calls("card-late-0")); n != 4 {
		t.Errorf("sent %d times, want 4", n)
	}
}

// Rule 7: different orders refused in a row, and none accepted: it is the set-up. The
// lane stops, all orders go back untouched, one at a time is tried, and once D1
// accepts one the lane runs again.
func TestWrongSetUpStopsTheLane(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		spoil  func(*d1sim.Settings, bool)
		byHand bool // somebody resumes the lane
	}{
		"wrong key": {func(s *d1sim.Settings, on bool) { s.WrongKey = on }, false},
		"wrong URL": {func(s *d1sim.Settings, on bool) { s.WrongURL = on }, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sim := unforgiving()
			c.spoil(&sim, true)
			b := newBank(t, sim, with(func(s *config.Sending) { s.Retry404For, s.CallTimeout = 10*time.Millisecond, patience }))
			const n = 12
			ids := b.crowd("stopped", n)
			b.eventually("the lane stops", func() bool { return b.lane().State == client.LaneStopped })
			b.eventually("all orders are back", func() bool { return b.lane().Refused == 0 })
			before := len(b.requests(d1sim.Filter{Kind: d1sim.KindProduction}))
			if most := n + 8; before > most {
				t.Errorf("%d sendings before the stop, of %d orders", before, n)
			}
			b.wait(d1sim.Condition{Kind: d1sim.KindProduction, Requests: before + 2})
			probes := b.requests(d1sim.Filter{Kind: d1sim.KindProduction})[before:]
			if probes[0].CardID == probes[1].CardID {
				t.Error("the same order was tried twice in a row")
			}
			for _, id := range ids {
				if a := b.get(id); a.view.Status != "ACCEPTED" || len(a.view.Attention) > 0 {
					t.Errorf("an order is %s, attention %v", a.view.Status, a.view.Attention)
				}
			}
			b.settings(func(s *d1sim.Settings) { c.spoil(s, false) })
			if c.byHand {
				b.resume()
			}
			b.allShipped("stopped", ids)
			if l := b.lane(); l.State != client.LaneRunning || l.Stop != nil || l.Refused != 0 {
				t.Errorf("the lane after it: %+v", l)
			}
		})
	}
}

// Rules 5 and 7: what is no order's fault opens the breaker of the lane: nothing is
// sent until D1 answers again, and nothing is rejected.
func TestTroubleOpensTheBreaker(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		script d1sim.Script
		reason string // why the breaker is open
	}{
		"second 401":          {d1sim.Script{Kind: d1sim.KindProduction, Action: d1sim.ActionAnswer, Status: 401}, "unauthorized"},
		"token endpoint down": {d1sim.Script{Kind: d1sim.KindToken, Action: d1sim.ActionAnswer, Status: 503}, "token"},
		"assertion refused":   {d1sim.Script{Kind: d1sim.KindToken, Action: d1sim.ActionAnswer, Status: 400, Body: `{"error":"invalid_grant"}`}, "token-refused"},
		"D1 down":             {d1sim.Script{Kind: d1sim.KindProduction, Action: d1sim.ActionAnswer, Status: 503}, "unavailable"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBank(t, asking())
			script := c.script
			script.Times = 1_000_000
			b.script(script)
			const n = 16
			ids := b.crowd("waiting", n)
			b.eventually("the breaker opens", func() bool {
				sending := b.breaker()
				return sending.State != "closed" && sending.Reason == c.reason
			})
			// Every order may have begun before the breaker opened, with a second try after a 401, but
			// they are not tried on and on.
			if calls := len(b.requests(d1sim.Filter{Kind: c.script.Kind})); calls > 3*n {
				t.Errorf("D1 was called %d times for %d orders", calls, n)
			}
			if err := b.env.Management.ClearScripts(t.Context()); err != nil {
				t.Fatal(err)
			}
			b.resume()
			b.allShipped("waiting", ids)
			b.eventually("the breaker closes", func() bool { return b.breaker().State == "closed" })
			if made := query[int](b, `SELECT count(*) FROM attempts WHERE outcome = 'refused'`); made != 0 {
				t.Errorf("%d orders were refused", made)
			}
		})
	}
}

// Rule 8: a cancel or a hold of an order that a worker has in hand comes too late to be
// certain. It is never sent again: what D1 turns out not to have is stopped then; of what
// it has, a cancel becomes a change that it is sent, and a hold is told to a human.
func TestStopThatComesTooLate(t *testing.T) {
	t.Parallel()
	slow := d1sim.Duration(6 * time.Second) // in which the cancel or the hold comes, on a busy machine too
	for name, c := range map[string]struct {
		script d1sim.Script // of the order's first sending
		action string
		ends   func(a answer) bool
		cards  int
	}{
		"cancel, not taken": {
			d1sim.Script{Action: d1sim.ActionAnswer, Status: 429, Delay: slow}, "cancel",
			func(a answer) bool { return a.view.Status == "CANCELLED" }, 0,
		},
		"hold, not taken": {
			d1sim.Script{Action: d1sim.ActionAnswer, Status: 429, Delay: slow}, "hold",
			func(a answer) bool { return a.view.Status == "HELD" }, 0,
		},
		"cancel, taken": {
			d1sim.Script{Action: d1sim.ActionDelay, Delay: slow}, "cancel",
			func(a answer) bool { return a.view.Status == "SUBMITTED" && len(a.view.Attention) == 0 }, 1,
		},
		"hold, taken": {
			d1sim.Script{Action: d1sim.ActionDelay, Delay: slow}, "hold",
			func(a answer) bool { return a.view.Status == "SUBMITTED" && a.needs("stop-too-late") }, 1,
		},
		"cancel, answer lost": {
			d1sim.Script{Action: d1sim.ActionLostAfter, Delay: slow}, "cancel",
			func(a answer) bool { return a.view.Status == "SUBMITTED" && len(a.view.Attention) == 0 }, 1,
		},
		"cancel, request lost": {
			d1sim.Script{Action: d1sim.ActionLostBefore, Delay: slow}, "cancel",
			func(a answer) bool { return a.view.Status == "CANCELLED" }, 0, // once D1 has said so: twice, later than resendAfter
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sim := asking()
			sim.HoldNotifications = true // only D1's answers can tell
			if c.cards == 1 {
				sim.StopAt = d1sim.CardProdRequested // early enough for a change
			}
			b := newBank(t, sim, with(func(s *config.Sending) { s.CallTimeout = patience }))
			c.script.Kind = d1sim.KindProduction
			b.script(c.script)
			batch := b.upload("", "too-late", "application/x-ndjson", strings.NewReader(b.lines(b.thales("late"))), nil)
			id := b.results(batch.ID, "")[0].Order
			b.wait(d1sim.Condition{Kind: d1sim.KindProduction, Requests: 1}) // not answered yet
			if a := b.act(batch.ID, c.action); a.TooLate != 1 {
				t.Fatalf("%s: %d too late, %d changed", c.action, a.TooLate, a.Changed)
			}
			var a answer
			b.eventually("it ends as it must", func() bool { a = b.get(id); return c.ends(a) })
			if n := sendings(b.calls("card-late")); n != 1 {
				t.Errorf("sent %d times", n)
			}
			if n := b.cards("request-late"); n != c.cards {
				t.Errorf("%d cards, want %d", n, c.cards)
			}
			b.noGaps(id)
			if c.action == "cancel" && c.cards == 1 {
				b.wait(d1sim.Condition{Kind: d1sim.KindChange, Requests: 1})
				b.settings(func(s *d1sim.Settings) { s.HoldNotifications = false })
				b.await(id, "CANCELLED")
			}
			if c.action == "hold" && c.cards == 0 {
				b.settings(func(s *d1sim.Settings) { s.HoldNotifications = false })
				b.act(batch.ID, "release")
				b.await(id, "SHIPPED")
				b.oneCard("request-late")
			}
		})
	}
}

// What D1's statuses mean, told in notifications or as an answer: where an order stands
// that was only submitted before.
func TestEveryStatusOfD1(t *testing.T) {
	t.Parallel()
	for name, asked := range map[string]bool{"notified": false, "asked": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sim := unforgiving()
			sim.HoldNotifications, sim.StopAt = asked, d1sim.CardProdRequested
			b := newBank(t, sim, func(cfg *config.Config) { cfg.Issuers[0].OnHoldStatuses = []string{"CARD_PROD_HELD"} })
			cases := []struct {
				status, operation string
				want              word
				attention         string
			}{
				{"CARD_PROD_REQUESTED", "PENDING", "SUBMITTED", ""},
				{"DATA_PREPARED", "PENDING", "DATA_PREPARED", ""},
				{"DATA_EXCEPTION", "PENDING", "EXCEPTION", "exception"},
				{"DATA_EXCEPTION", "FAILED", "FAILED", "failed"},
				{"CARD_PROD_READY", "PENDING", "READY", ""},
				{"CARD_PROD_HELD", "PENDING", "ON_HOLD", ""},
				{"CARD_PROD_ONGOING", "PENDING", "IN_PRODUCTION", ""},
				{"CARD_PROD_EXCEPTION", "PENDING", "EXCEPTION", "exception"},
				{"CARD_PROD_EXCEPTION", "FAILED", "FAILED", "failed"},
				{"CARD_PROD_CANCELED", "FAILED", "CANCELLED", ""},
				{"CARD_PROD_CANCELED", "SUCCESSFUL", "CANCELLED", ""},
				{"CARD_PROD_DONE", "PENDING", "PRODUCED", ""},
				{"CARD_SHIPPED", "SUCCESSFUL", "SHIPPED", ""},
				{"CARD_FOLDED_IN_HALF", "PENDING", "SUBMITTED", "unknown-status"},
			}
			ids := make([]string, len(cases))
			for i, c := range cases {
				ids[i] = b.place(b.thales(fmt.Sprintf("status-%d", i)))
				a := b.await(ids[i], "SUBMITTED")
				move := d1sim.Move{OperationID: a.view.OperationID, Status: c.status, OperationStatus: c.operation}
				if err := b.env.Management.Move(t.Context(), move); err != nil {
					t.Fatal(err)
				}
				if asked {
					b.refresh(ids[i])
				}
			}
			for i, c := range cases {
				a := b.await(ids[i], c.want)
				if c.attention != "" {
					b.eventually(c.status+" calls for a human", func() bool { return b.get(ids[i]).needs(c.attention) })
				} else if len(a.view.Attention) > 0 {
					t.Errorf("%s %s: attention %v", c.status, c.operation, a.view.Attention)
				}
				b.noGaps(ids[i])
			}
		})
	}
}

// Rule 9: a second operation of a request is a second card. A human is called at once,
// however D1 tells of it, and it never moves the order's status.
func TestTwoOperationsForOneRequest(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		notified bool // D1 tells by notifications, else when it is asked
		answer   d1sim.Action
	}{
		"told by notifications": {true, d1sim.ActionTwoOperations},
		"told when asked":       {false, d1sim.ActionTwoOperations},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sim := unforgiving()
			sim.HoldNotifications = !c.notified
			b := newBank(t, sim)
			b.script(d1sim.Script{Kind: d1sim.KindProduction, Action: c.answer})
			id := b.place(b.thales("two"))
			if c.notified {
				b.await(id, "SHIPPED")
			} else {
				b.await(id, "SUBMITTED")
				b.wait(d1sim.Condition{Cards: 2, Status: d1sim.CardShipped})
				b.refresh(id)
			}
			b.eventually("a human is called", func() bool { return b.get(id).needs("second-card") })
			a := b.get(id)
			if made := b.requests(d1sim.Filter{CardID: "card-two", Kind: d1sim.KindProduction}); a.view.OperationID != made[0].OperationID {
				t.Errorf("the operation is %s, want that of the answer", a.view.OperationID)
			}
			b.noGaps(id)
		})
	}
}

// refresh has D1 asked about an order.
func (b *bank) refresh(id string) {
	b.t.Helper()
	if a := b.action(orders+"/"+id+"/refresh", "", nil); a.status != http.StatusAccepted {
		b.t.Fatalf("refresh: %d %s", a.status, a.text)
	}
}

// retry has an order sent anew.
func (b *bank) retry(id string) {
	b.t.Helper()
	if a := b.action(orders+"/"+id+"/retry", "", nil); a.status != http.StatusOK {
		b.t.Fatalf("retry: %d %s", a.status, a.text)
	}
}

// Rule 10: trying ends, a human is told, and may have it begun anew with the same
// issuerRequestId.
func TestTryingEnds(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		script d1sim.Script
		status word // while it waits for a human
	}{
		"refused":     {d1sim.Script{Action: d1sim.ActionAnswer, Status: 404}, "ACCEPTED"},
		"not to tell": {d1sim.Script{Action: d1sim.ActionAnswer, Status: 500}, "OUTCOME_UNKNOWN"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBank(t, asking(), with(func(s *config.Sending) {
				s.GiveUpAfter, s.ResendAfter, s.Retry404For = 500*time.Millisecond, 200*time.Millisecond, 100*time.Millisecond
				s.BreakerThreshold = 1000
			}))
			c.script.Kind, c.script.Times, c.script.IssuerRequestID = d1sim.KindProduction, 1000, "request-tired-0"
			b.script(c.script)
			ids := b.crowd("tired", 1)
			b.eventually("it is given up", func() bool { return b.get(ids[0]).needs("given-up") })
			if a := b.get(ids[0]); a.view.Status != c.status {
				t.Errorf("given up at %s, want %s", a.view.Status, c.status)
			}
			sent := sendings(b.calls("card-tired-0"))
			if c.status == "OUTCOME_UNKNOWN" {
				b.await(b.place(b.thales("other")), "SHIPPED") // others go on
				asked := len(b.calls("card-tired-0"))
				b.eventually("it is asked about on and on", func() bool { return len(b.calls("card-tired-0")) > asked+3 })
			}
			if n := sendings(b.calls("card-tired-0")); n != sent {
				t.Errorf("sent %d times more", n-sent)
			}
			if l := b.lane(); l.GivenUp+l.Unknown != 1 {
				t.Errorf("the lane tells of %d given up, %d unknown", l.GivenUp, l.Unknown)
			}
			if err := b.env.Management.ClearScripts(t.Context()); err != nil {
				t.Fatal(err)
			}
			b.retry(ids[0])
			b.allShipped("tired", ids)
		})
	}
}

// Rule 10: what is not the order's trouble does not count as trying: a pause, a 429, an
// open breaker.
func TestWhatBurnsNothing(t *testing.T) {
	t.Parallel()
	const giveUpAfter = 300 * time.Millisecond
	for name, trouble := range map[string]func(b *bank) (mend func()){
		"pause": func(b *bank) func() {
			b.pause()
			return b.resume
		},
		"429": func(b *bank) func() {
			b.script(d1sim.Script{Kind: d1sim.KindProduction, Action: d1sim.ActionAnswer, Status: 429, Times: 1000})
			return b.clearScripts
		},
		"open breaker": func(b *bank) func() {
			b.script(d1sim.Script{Kind: d1sim.KindToken, Action: d1sim.ActionAnswer, Status: 503, Times: 1000})
			return func() { b.clearScripts(); b.resume() }
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBank(t, asking(), with(func(s *config.Sending) { s.GiveUpAfter, s.Retry404For = giveUpAfter, giveUpAfter/3 }))
			mend := trouble(b)
			ids := b.crowd("patient", 2)
			placed := time.Now()
			b.eventually("much time has passed", func() bool { return time.Since(placed) > 5*giveUpAfter })
			mend()
			b.allShipped("patient", ids)
		})
	}
}

func (b *bank) clearScripts() {
	b.t.Helper()
	if err := b.env.Management.ClearScripts(b.t.Context()); err != nil {
		b.t.Fatal(err)
	}
}

// A row that cannot be read holds up nothing: it gets an attempt with a reason, and a
// human; when it can be read again it goes out.
func TestUnreadableRowsHoldUpNothing(t *testing.T) {
	t.Parallel()
	b := newBank(t, unforgiving())
	b.pause()
	bad := b.place(b.thales("bad"))
	good := b.crowd("good", 3)
	sealed := query[[]byte](b, `SELECT production FROM order_payload WHERE order_id = $1`, bad)
	spoil := func(content []byte) {
		query[string](b, `UPDATE order_payload SET production = $2 WHERE order_id = $1 RETURNING issuer_id`, bad, content)
	}
	spoil([]byte("not what was sealed"))
	b.resume()
	b.allShipped("good", good)
	b.eventually("a human is called", func() bool { return b.get(bad).needs("unreadable") })
	if got := b.attempts(bad); got[0] != "submit not-taken unreadable-content" {
		t.Errorf("attempts %v", got)
	}
	if n := sendings(b.calls("card-bad")); n != 0 {
		t.Errorf("sent %d times", n)
	}
	spoil(sealed)
	query[string](b, `UPDATE outbox SET run_at = now() WHERE order_id = $1 RETURNING issuer_id`, bad) // the next try is minutes away
	b.await(bad, "SHIPPED")
	b.oneCard("request-bad")
}
