package d1sim_test

import (
	"net/http"
	"testing"
	"time"

	"cardorder/internal/d1sim"
)

func TestScriptedAnswers(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		script d1sim.Script
		status int // 0: the connection is cut
		body   string
		cards  int
	}{
		"answer":          {d1sim.Script{Action: d1sim.ActionAnswer, Status: 429, Body: "{}", Headers: map[string]string{"Retry-After": "7"}}, 429, "{}", 0},
		"reject":          {d1sim.Script{Action: d1sim.ActionReject, ErrorCode: "X", Error: "y"}, 400, `{"errorCode":"X","error":"y"}`, 0},
		"lost-before":     {d1sim.Script{Action: d1sim.ActionLostBefore}, 0, "", 0},
		"lost-after":      {d1sim.Script{Action: d1sim.ActionLostAfter}, 0, "", 1},
		"error-after":     {d1sim.Script{Action: d1sim.ActionErrorAfter}, 500, `{"error":"internal error"}`, 1},
		"no-operation-id": {d1sim.Script{Action: d1sim.ActionNoOperationID}, 202, "{}", 1},
		"two-operations":  {d1sim.Script{Action: d1sim.ActionTwoOperations}, 202, "", 2},
		"redirect after":  {d1sim.Script{Action: d1sim.ActionAnswerAfter, Status: 307, Headers: map[string]string{"Location": "/"}}, 307, "", 1},
		"not JSON after":  {d1sim.Script{Action: d1sim.ActionAnswerAfter, Body: "no"}, 202, "no", 1},
		"long":            {d1sim.Script{Action: d1sim.ActionAnswer, Status: 418, Body: "{}", Size: 5}, 418, "{}   ", 0},
		"shorter":         {d1sim.Script{Action: d1sim.ActionAnswer, Status: 418, Body: "{}", Size: 1}, 418, "{}", 0},
		"dripping":        {d1sim.Script{Action: d1sim.ActionAnswer, Status: 418, Body: "{}", Drip: d1sim.Duration(time.Millisecond)}, 418, "{}", 0},
		"revoke":          {d1sim.Script{Action: d1sim.ActionRevoke}, 401, `{"errorCode":"AUTHORIZER_UNAUTHORIZED","error":"access token is missing, unknown or expired"}`, 0},
		"bound":           {d1sim.Script{Action: d1sim.ActionLostAfter, IssuerRequestID: "request-1", CardID: "card-1"}, 0, "", 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBureau(t, still)
			c.script.Kind = d1sim.KindProduction
			b.script(c.script)
			got := b.order("card-1", b.thales("request-1"))
			if c.script.Action == d1sim.ActionTwoOperations {
				c.body = `{"operationId":"` + b.sim.Cards()[0].OperationID + `"}` // of the first one
			}
			if got.status != c.status || string(got.body) != c.body || (got.err != nil) != (c.status == 0) {
				t.Errorf("got %d %s %v", got.status, got.body, got.err)
			}
			if want := c.script.Headers["Retry-After"]; got.header.Get("Retry-After") != want {
				t.Errorf("Retry-After %q, want %q", got.header.Get("Retry-After"), want)
			}
			record := b.sim.History(d1sim.Filter{Kind: d1sim.KindProduction})[0]
			if record.Status != c.status || record.Cut != (c.status == 0) || record.Script != c.script.Action || record.CardMade != (c.cards > 0) {
				t.Errorf("history %+v", record)
			}
			if made := len(b.sim.Cards()); made != c.cards || c.cards > 0 && record.OperationID == "" {
				t.Errorf("%d cards made, want %d; history %+v", made, c.cards, record)
			}

			if c.status == http.StatusUnauthorized {
				b.token = b.fetchToken(b.claims(issuerID))
			}
			b.accepted("card-1", b.thales("request-1")) // the script is used up
			if made := len(b.sim.Cards()); made != max(1, c.cards) {
				t.Errorf("%d cards made after the repeat", made)
			}
		})
	}
}

func TestScriptsAreBoundAndCounted(t *testing.T) {
	t.Parallel()
	b := newBureau(t, still)
	b.script(d1sim.Script{Kind: d1sim.KindProduction, Action: d1sim.ActionAnswer, Status: 503, IssuerRequestID: "request-2", Times: 2})
	b.script(d1sim.Script{Kind: d1sim.KindStatus, Action: d1sim.ActionAnswer, Status: 502, Body: "<html>", CardID: "card-2",
		Headers: map[string]string{"Content-Type": "text/html"}})
	b.script(d1sim.Script{Kind: d1sim.KindToken, Action: d1sim.ActionLostAfter})

	b.accepted("card-1", b.thales("request-1"))
	for _, want := range []int{503, 503, 202} {
		if got := b.order("card-2", b.thales("request-2")); got.status != want {
			t.Errorf("got %d, want %d", got.status, want)
		}
	}
	b.operations("card-1")
	if got := b.productionStatus("card-2"); got.status != 502 || got.header.Get("Content-Type") != "text/html" {
		t.Errorf("got %d %v", got.status, got.header)
	}
	if got := b.grant(b.assertion(b.claims(issuerID))); got.err == nil {
		t.Errorf("token: got %d", got.status)
	}
	if left := b.sim.Scripts(); len(left) != 0 {
		t.Errorf("left %+v", left)
	}
}

func TestScriptWaitsForAnAcceptedRequest(t *testing.T) {
	t.Parallel()
	b := newBureau(t, still)
	b.script(d1sim.Script{Kind: d1sim.KindProduction, Action: d1sim.ActionLostAfter})
	good, bad := b.thales("request-1"), b.thales("request-1")
	bad["services"] = nil
	if got := b.order("card-1", bad); got.status != http.StatusBadRequest {
		t.Errorf("refused order: got %d", got.status)
	}
	if got := b.order("card-1", good); got.err == nil {
		t.Errorf("good order: got %d", got.status)
	}
}

func TestDelayedAnswerIsAcceptedBefore(t *testing.T) {
	t.Parallel()
	b := newBureau(t, still)
	b.script(d1sim.Script{Kind: d1sim.KindProduction, Action: d1sim.ActionDelay, Delay: d1sim.Duration(time.Hour)})
	body := toJSON(t, b.thales("request-1"))
	// The answer never comes in this test's time: the client's context ends with the test.
	go b.send(http.MethodPost, productionURL("card-1"), body, b.header())

	b.wait(d1sim.Condition{Cards: 1, Requests: 1, Kind: d1sim.KindProduction, CardID: "card-1"})
	if got := b.operations("card-1"); len(got) != 1 {
		t.Errorf("status while the answer is late: %+v", got)
	}
}

func TestScriptIsChecked(t *testing.T) {
	t.Parallel()
	b := newBureau(t, still)
	for name, sc := range map[string]d1sim.Script{
		"no kind":                 {Action: d1sim.ActionLostAfter},
		"no action":               {Kind: d1sim.KindStatus},
		"no status":               {Kind: d1sim.KindStatus, Action: d1sim.ActionAnswer},
		"no delay":                {Kind: d1sim.KindStatus, Action: d1sim.ActionDelay},
		"operation of a token":    {Kind: d1sim.KindToken, Action: d1sim.ActionNoOperationID},
		"card of a token":         {Kind: d1sim.KindToken, Action: d1sim.ActionLostAfter, CardID: "card-1"},
		"request of a status":     {Kind: d1sim.KindStatus, Action: d1sim.ActionLostAfter, IssuerRequestID: "request-1"},
		"second card of a status": {Kind: d1sim.KindStatus, Action: d1sim.ActionTwoOperations},
		"revoke of a token":       {Kind: d1sim.KindToken, Action: d1sim.ActionRevoke},
		"odd status":              {Kind: d1sim.KindStatus, Action: d1sim.ActionAnswerAfter, Status: 100},
		"negative drip":           {Kind: d1sim.KindStatus, Action: d1sim.ActionAnswerAfter, Drip: -1},
		"far too long":            {Kind: d1sim.KindStatus, Action: d1sim.ActionAnswerAfter, Size: 1 << 30},
		"negative times":          {Kind: d1sim.KindStatus, Action: d1sim.ActionLostAfter, Times: -1},
	} {
		if err := b.sim.Script(sc); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
