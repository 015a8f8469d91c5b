package d1sim

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"
)

// Action is what a script does to the request it meets.
type Action string

// The actions. The first four act before anything is judged, so nothing is accepted. The others let the request be
// judged and accepted; one that is refused by the contract gets that refusal, and the script waits on.
const (
	ActionAnswer        Action = "answer"          // Status, Body and Headers of the script
	ActionReject        Action = "reject"          // 400 with ErrorCode and Error of the script
	ActionLostBefore    Action = "lost-before"     // the connection is cut
	ActionRevoke        Action = "revoke"          // the request's access token ends now, so it gets 401; not for token
	ActionAnswerAfter   Action = "answer-after"    // accepted, then answered with what is given of Status, Body and Headers
	ActionLostAfter     Action = "lost-after"      // accepted, then the connection is cut
	ActionErrorAfter    Action = "error-after"     // accepted, then 500 with a D1 error body
	ActionNoOperationID Action = "no-operation-id" // accepted, then 202 {}: production and change only
	ActionTwoOperations Action = "two-operations"  // accepted, with a second card by a second operation: production only
	ActionDelay         Action = "delay"           // accepted and answered as ever, after Delay
)

// before tells whether the action answers before the request is judged.
func (a Action) before() bool {
	return a == ActionAnswer || a == ActionReject || a == ActionLostBefore
}

// Script is what the next fitting requests meet. Scripts are looked through in the order in which they came.
type Script struct {
	// Kind is production, change, status or token. Required.
	Kind Kind `json:"kind"`

	// Action is required.
	Action Action `json:"action"`

	// IssuerRequestID (production and change only) and CardID (not for token) bind the script. Default: any request of the kind.
	IssuerRequestID string `json:"issuerRequestId,omitempty"`
	CardID          string `json:"cardId,omitempty"`

	// Times is how many requests the script meets. Default 1.
	Times int `json:"times,omitempty"`

	// Delay passes before the answer, or before the cut. Required for delay, else default 0.
	Delay Duration `json:"delay,omitempty"`

	// Drip sends the answer's body one byte at a time, with this long before each. Default 0: all at once.
	Drip Duration `json:"drip,omitempty"`

	// Size makes the answer's body at least this many bytes long, by spaces after it. Default 0.
	Size int `json:"size,omitempty"`

	// Status, Body and Headers are for answer and answer-after. Status is required for answer; a body is sent as
	// application/json unless Headers say otherwise.
	Status  int               `json:"status,omitempty"`
	Body    string            `json:"body,omitempty"`
	Headers map[string]string `json:"headers,omitempty"`

	// ErrorCode and Error are for reject. Default FIELD_INVALID_VALUE, "rejected by script".
	ErrorCode string `json:"errorCode,omitempty"`
	Error     string `json:"error,omitempty"`
}

// checked returns the script with defaults filled in, or all that is wrong with it.
func (sc Script) checked() (Script, error) {
	defaultTo(&sc.Times, 1)
	if sc.Action == ActionReject {
		defaultTo(&sc.ErrorCode, invalidValue)
		defaultTo(&sc.Error, "rejected by script")
	}

	var faults []error
	fail := func(wrong bool, format string, args ...any) {
		if wrong {
			faults = append(faults, fmt.Errorf(format, args...))
		}
	}
	fail(!slices.Contains([]Kind{KindProduction, KindChange, KindStatus, KindToken}, sc.Kind), "kind: %q is not known", sc.Kind)
	fail(!slices.Contains([]Action{ActionAnswer, ActionReject, ActionLostBefore, ActionRevoke, ActionAnswerAfter, ActionLostAfter,
		ActionErrorAfter, ActionNoOperationID, ActionTwoOperations, ActionDelay}, sc.Action), "action: %q is not known", sc.Action)
	takes := sc.Kind == KindProduction || sc.Kind == KindChange
	fail(sc.Action == ActionNoOperationID && !takes, "action: %s is for production and change", sc.Action)
	fail(sc.Action == ActionTwoOperations && sc.Kind != KindProduction, "action: %s is for production", sc.Action)
	fail(sc.Action == ActionRevoke && sc.Kind == KindToken, "action: revoke is not for token")
	fail((sc.Action == ActionAnswer || sc.Status != 0) && (sc.Status < 200 || sc.Status > 599), "status: must be 200 to 599")
	fail(sc.Drip < 0, "drip: must not be negative")
	fail(sc.Size < 0 || sc.Size > maxSize, "size: must be 0 to %d", maxSize)
	fail(sc.Action == ActionDelay && sc.Delay == 0, "delay: is required")
	fail(sc.Delay < 0, "delay: must not be negative")
	fail(sc.Times < 0, "times: must not be negative")
	fail(sc.IssuerRequestID != "" && !takes, "issuerRequestId: only production and change requests have one")
	fail(sc.CardID != "" && sc.Kind == KindToken, "cardId: token requests have none")
	return sc, errors.Join(faults...)
}

const maxSize = 100 << 20 // of a scripted answer, in bytes

func (sc *Script) fits(r *Request) bool {
	return sc.Kind == r.Kind &&
		(sc.IssuerRequestID == "" || sc.IssuerRequestID == r.IssuerRequestID) &&
		(sc.CardID == "" || sc.CardID == r.CardID)
}

// answer is what a script says before anything is judged.
func (sc *Script) answer() answer {
	ans := answer{cut: true} // ActionLostBefore
	switch sc.Action {
	case ActionAnswer:
		ans = answer{status: sc.Status, headers: sc.Headers, body: []byte(sc.Body)}
	case ActionReject:
		ans = d1Error(http.StatusBadRequest, sc.ErrorCode, sc.Error)
	}
	return sc.paced(ans)
}

// after is what a script makes of the answer to an accepted request.
func (sc *Script) after(ans answer) answer {
	switch sc.Action {
	case ActionAnswerAfter:
		if sc.Status != 0 {
			ans.status, ans.body = sc.Status, nil
		}
		if sc.Body != "" {
			ans.body = []byte(sc.Body)
		}
		ans.headers = sc.Headers
	case ActionLostAfter:
		ans = answer{cut: true}
	case ActionErrorAfter:
		ans = d1Error(http.StatusInternalServerError, "", "internal error")
	case ActionNoOperationID:
		ans = answer{status: http.StatusAccepted, body: []byte("{}")}
	}
	return sc.paced(ans)
}

// paced gives an answer the length and the speed that the script asks for.
func (sc *Script) paced(ans answer) answer {
	ans.delay, ans.drip = time.Duration(sc.Delay), time.Duration(sc.Drip)
	if missing := sc.Size - len(ans.body); missing > 0 {
		ans.body = append(slices.Clip(ans.body), bytes.Repeat([]byte(" "), missing)...)
	}
	return ans
}

// Script queues a script.
func (s *Sim) Script(sc Script) error {
	sc, err := sc.checked()
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.book.scripts = append(s.book.scripts, &sc)
	return nil
}

// Scripts lists the scripts not used up yet, Times being what is left.
func (s *Sim) Scripts() []Script {
	s.mu.Lock()
	defer s.mu.Unlock()
	left := []Script{}
	for _, sc := range s.book.scripts {
		if sc.Times > 0 {
			left = append(left, *sc)
		}
	}
	return left
}

// ClearScripts forgets the scripts not used up yet.
func (s *Sim) ClearScripts() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.book.scripts = nil
}

// takeScript uses the first script that fits the request once, and records it.
func (s *Sim) takeScript(r *Request) *Script {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sc := range s.book.scripts {
		if sc.Times > 0 && sc.fits(r) {
			sc.Times--
			r.Script = sc.Action
			return sc
		}
	}
	return nil
}

// giveBack undoes takeScript: a used-up script keeps its place in the list for this.
func (s *Sim) giveBack(sc *Script) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sc.Times++
}
