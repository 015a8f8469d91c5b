package d1sim

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// Duration is a time.Duration written as in Go: "20ms", "5m".
type Duration time.Duration

// MarshalText writes the duration as in Go.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText reads a duration as written in Go.
func (d *Duration) UnmarshalText(text []byte) error {
	parsed, err := time.ParseDuration(string(text))
	if err != nil {
		return err
	}
	*d = Duration(parsed)
	return nil
}

// What a repeated issuerRequestId gets (Settings.Repeat).
const (
	RepeatSame       = "same"        // 202 with the operationId of the first order
	RepeatSecondCard = "second-card" // 202 with a new operationId, and a second card is made
	RepeatConflict   = "conflict"    // 409
)

// Where an operation carries issuerRequestId (Settings.RequestIDPlace).
const (
	PlaceTop     = "top"     // beside operationId
	PlaceDetails = "details" // inside details
	PlaceBoth    = "both"
)

// What productionStatus answers for a card without a visible order (Settings.UnknownCard).
const (
	UnknownCardNotFound = "404"
	UnknownCardEmpty    = "empty" // 200 with no operations
)

// What a change gets that comes too late (Settings.LateChange).
const (
	LateChangeNotified = "notified" // 202, and then an UPDATE_ORDER that FAILED
	LateChangeRefused  = "refused"  // 409 at once, when it is late already
)

// What is told of a decided change (Settings.ChangeTold).
const (
	ToldAll    = "all"
	ToldChange = "change" // the UPDATE_ORDER, not that the card was cancelled
	ToldCard   = "card"   // only that the card was cancelled
	ToldNone   = "none"
)

// Never, in Settings.ChangeUntil, refuses every change.
const Never = "never"

// RepeatAgain takes a repeated change as a new one (Settings.RepeatedChange).
const RepeatAgain = "again"

// Settings say how the simulator behaves until they are changed. A zero field means its default.
type Settings struct {
	// StepInterval is the time a card spends in each production step. Default 300ms. A change applies at once, to
	// cards under way too.
	StepInterval Duration `json:"stepInterval" yaml:"stepInterval"`

	// StopAt is the details.status at which production stops walking. Default none: cards walk to the end. Cards that
	// stopped walk on when it changes.
	StopAt string `json:"stopAt" yaml:"stopAt"`

	// FailAt lets production run into an exception. Default none.
	FailAt *FailAt `json:"failAt" yaml:"failAt"`

	// CarrierStatuses are the codes that the carrier reports of a shipped card, one each StepInterval. Default none. Cards
	// that had all of them, or were shipped while there were none, are not followed any more.
	CarrierStatuses []string `json:"carrierStatuses" yaml:"carrierStatuses"`

	// CardOperations are other operations that every card of an order has had, as CREATE and ACTIVATE: each is told as
	// the order is accepted. Default none.
	CardOperations []string `json:"cardOperations" yaml:"cardOperations"`

	// Repeat is what an issuerRequestId sent again gets: "same", "second-card" or "conflict". Default "same".
	Repeat string `json:"repeat" yaml:"repeat"`

	// StatusLag is the time until an accepted order is seen by productionStatus. Default 0.
	StatusLag Duration `json:"statusLag" yaml:"statusLag"`

	// StatusLatestOnly lets productionStatus show only the card's latest operation. Default false: all of them.
	StatusLatestOnly bool `json:"statusLatestOnly" yaml:"statusLatestOnly"`

	// StatusWithoutRequestIDs leaves issuerRequestId out of productionStatus. Default false.
	StatusWithoutRequestIDs bool `json:"statusWithoutRequestIds" yaml:"statusWithoutRequestIds"`

	// NotifyWithoutRequestIDs leaves issuerRequestId out of notifications. Default false.
	NotifyWithoutRequestIDs bool `json:"notifyWithoutRequestIds" yaml:"notifyWithoutRequestIds"`

	// RequestIDPlace is where operations carry issuerRequestId: "top", "details" or "both". Default "top".
	RequestIDPlace string `json:"requestIdPlace" yaml:"requestIdPlace"`

	// UnknownCard is what productionStatus answers for a card it does not show: "404" or "empty". Default "404".
	UnknownCard string `json:"unknownCard" yaml:"unknownCard"`

	// MaxPerCall is the most operations in one notification call. Default 10.
	MaxPerCall int `json:"maxPerCall" yaml:"maxPerCall"`

	// RetryBackoff is the wait after a notification call that failed; it doubles with each failure in a row, up to 32
	// times itself. Default 100ms.
	RetryBackoff Duration `json:"retryBackoff" yaml:"retryBackoff"`

	// HoldNotifications queues notifications without delivering them. Default false.
	HoldNotifications bool `json:"holdNotifications" yaml:"holdNotifications"`

	// DuplicateNotifications delivers every notification a second time, in a later call. Default false.
	DuplicateNotifications bool `json:"duplicateNotifications" yaml:"duplicateNotifications"`

	// ReverseNotifications delivers the newest queued notification first. Default false.
	ReverseNotifications bool `json:"reverseNotifications" yaml:"reverseNotifications"`

	// ChangeUntil is up to which details.status the centre changes an order, by type.
	ChangeUntil ChangeUntil `json:"changeUntil" yaml:"changeUntil"`

	// LateChange is what a change beyond that gets: "notified" or "refused". Default "notified".
	LateChange string `json:"lateChange" yaml:"lateChange"`

	// ChangeDelay is the time until the centre decides on a change. Default 0: before the 202.
	ChangeDelay Duration `json:"changeDelay" yaml:"changeDelay"`

	// ChangePending tells of each change that is taken by an UPDATE_ORDER that is PENDING. Default false.
	ChangePending bool `json:"changePending" yaml:"changePending"`

	// ChangeTold is what is told of a change that is decided: "all", "change", "card" or "none". Default "all".
	ChangeTold string `json:"changeTold" yaml:"changeTold"`

	// ChangesWithoutRequestIDs leaves issuerRequestId out of every UPDATE_ORDER. Default false.
	ChangesWithoutRequestIDs bool `json:"changesWithoutRequestIds" yaml:"changesWithoutRequestIds"`

	// RepeatedChange is what the same change of the same order gets: "again", judged as if it were the first, or "same",
	// the operationId of the first unless that failed. Default "again".
	RepeatedChange string `json:"repeatedChange" yaml:"repeatedChange"`

	// CanceledStatus is the status of the PRODUCE operation of a card that was cancelled. Default SUCCESSFUL.
	CanceledStatus string `json:"canceledStatus" yaml:"canceledStatus"`

	// StatusWithChanges lets productionStatus show changes, too, by when they began. Default false.
	StatusWithChanges bool `json:"statusWithChanges" yaml:"statusWithChanges"`

	// AnswerDelay is the time between judging a request (and accepting an order) and answering it. Default 0.
	AnswerDelay Duration `json:"answerDelay" yaml:"answerDelay"`

	// TokenLifetime is the life of an access token, told in whole seconds. Default 15m.
	TokenLifetime Duration `json:"tokenLifetime" yaml:"tokenLifetime"`

	// RequireIndividualAddress requires shipment.individualAddress when shipment.type is INDIVIDUAL. Default false, as
	// in D1's own sample.
	RequireIndividualAddress bool `json:"requireIndividualAddress" yaml:"requireIndividualAddress"`

	// ConsumerAndProductOptional accepts orders without consumerId or cardProductId, as D1's schema does. Default
	// false, as D1's guide says.
	ConsumerAndProductOptional bool `json:"consumerAndProductOptional" yaml:"consumerAndProductOptional"`

	// Paused answers 503 to everything on the D1 side. Default false. Cards and notifications go on.
	Paused bool `json:"paused" yaml:"paused"`

	// WrongURL answers 404 without a D1 body to everything but token requests, as if the API were elsewhere. Default
	// false.
	WrongURL bool `json:"wrongUrl" yaml:"wrongUrl"`

	// WrongKey answers CRYPTO_ERROR to every order, as if D1's key were another one. Default false.
	WrongKey bool `json:"wrongKey" yaml:"wrongKey"`

	// ClockSkew is how far the bureau's clock is ahead of this machine's: in the Date header, in the times of operations
	// and when the times of a token assertion are judged. Default 0.
	ClockSkew Duration `json:"clockSkew" yaml:"clockSkew"`

	// Faults are misbehaviours by chance. Default none.
	Faults *Faults `json:"faults" yaml:"faults"`
}

// FailAt is an exception that cards run into.
type FailAt struct {
	// Status is DATA_EXCEPTION (instead of DATA_PREPARED) or CARD_PROD_EXCEPTION (after CARD_PROD_ONGOING).
	Status string `json:"status" yaml:"status"`

	// OperationStatus is FAILED, the end of the order, or PENDING: the card goes on at its next step. Default FAILED.
	OperationStatus string `json:"operationStatus,omitempty" yaml:"operationStatus"`

	// Reason is told in details.reason. Default "simulated exception".
	Reason string `json:"reason,omitempty" yaml:"reason"`

	// IssuerRequestID and CardID bind the exception to an order or a card. Default: all cards.
	IssuerRequestID string `json:"issuerRequestId,omitempty" yaml:"issuerRequestId"`
	CardID          string `json:"cardId,omitempty" yaml:"cardId"`
}

// ChangeUntil are the last steps at which an order can be changed: of production, or "never". An order that is shipped or
// otherwise at its end cannot be changed at all.
type ChangeUntil struct {
	// Cancel is for CANCEL. Default CARD_PROD_ONGOING.
	Cancel string `json:"cancel" yaml:"cancel"`
	// Accelerate is for ACCELERATE. Default CARD_PROD_DONE.
	Accelerate string `json:"accelerate" yaml:"accelerate"`
	// Redirect is for REDIRECT. Default CARD_PROD_DONE. ACCELERATE_AND_REDIRECT must pass both.
	Redirect string `json:"redirect" yaml:"redirect"`
}

// hits tells whether the card runs into the exception of this status.
func (f *FailAt) hits(status string, op *Operation) bool {
	return f != nil && f.Status == status &&
		(f.IssuerRequestID == "" || f.IssuerRequestID == op.IssuerRequestID) &&
		(f.CardID == "" || f.CardID == op.CardID)
}

// patched returns the settings with the members of a JSON patch changed, unknown ones refused; a null failAt, or faults,
// removes it.
func (s Settings) patched(patch []byte) (Settings, error) {
	next := s.clone()
	if err := decodeStrict(patch, &next); err != nil {
		return Settings{}, err
	}
	return next, nil
}

// clone copies what the settings point to, so that a patch can't reach into settings in use.
func (s Settings) clone() Settings {
	s.CarrierStatuses, s.CardOperations = slices.Clone(s.CarrierStatuses), slices.Clone(s.CardOperations)
	if s.FailAt != nil {
		failAt := *s.FailAt
		s.FailAt = &failAt
	}
	if s.Faults != nil {
		faults := *s.Faults
		s.Faults = &faults
	}
	return s
}

// checked returns the settings with defaults filled in, or all that is wrong with them.
func (s Settings) checked() (Settings, error) {
	s = s.clone()
	defaultTo(&s.StepInterval, Duration(300*time.Millisecond))
	defaultTo(&s.Repeat, RepeatSame)
	defaultTo(&s.RequestIDPlace, PlaceTop)
	defaultTo(&s.UnknownCard, UnknownCardNotFound)
	defaultTo(&s.MaxPerCall, 10)
	defaultTo(&s.RetryBackoff, Duration(100*time.Millisecond))
	defaultTo(&s.ChangeUntil.Cancel, CardProdOngoing)
	defaultTo(&s.ChangeUntil.Accelerate, CardProdDone)
	defaultTo(&s.ChangeUntil.Redirect, CardProdDone)
	defaultTo(&s.LateChange, LateChangeNotified)
	defaultTo(&s.ChangeTold, ToldAll)
	defaultTo(&s.RepeatedChange, RepeatAgain)
	defaultTo(&s.CanceledStatus, OperationSuccessful)
	defaultTo(&s.TokenLifetime, Duration(15*time.Minute))
	if s.FailAt != nil {
		defaultTo(&s.FailAt.OperationStatus, OperationFailed)
		defaultTo(&s.FailAt.Reason, "simulated exception")
	}
	if s.Faults != nil {
		*s.Faults = s.Faults.checked()
	}
	return s, s.faults()
}

func (s Settings) faults() error {
	var faults []error
	oneOf := func(name, value string, allowed ...string) {
		if !slices.Contains(allowed, value) {
			faults = append(faults, fmt.Errorf("%s: %q is none of %q", name, value, allowed))
		}
	}
	atLeast := func(name string, value, least Duration) {
		if value < least {
			faults = append(faults, fmt.Errorf("%s: must be at least %v", name, time.Duration(least)))
		}
	}

	oneOf("repeat", s.Repeat, RepeatSame, RepeatSecondCard, RepeatConflict)
	oneOf("requestIdPlace", s.RequestIDPlace, PlaceTop, PlaceDetails, PlaceBoth)
	oneOf("unknownCard", s.UnknownCard, UnknownCardNotFound, UnknownCardEmpty)
	oneOf("stopAt", s.StopAt, append([]string{""}, productionPath...)...)
	oneOf("changeUntil.cancel", s.ChangeUntil.Cancel, append([]string{Never}, productionPath...)...)
	oneOf("changeUntil.accelerate", s.ChangeUntil.Accelerate, append([]string{Never}, productionPath...)...)
	oneOf("changeUntil.redirect", s.ChangeUntil.Redirect, append([]string{Never}, productionPath...)...)
	oneOf("lateChange", s.LateChange, LateChangeNotified, LateChangeRefused)
	oneOf("changeTold", s.ChangeTold, ToldAll, ToldChange, ToldCard, ToldNone)
	oneOf("repeatedChange", s.RepeatedChange, RepeatAgain, RepeatSame)
	oneOf("canceledStatus", s.CanceledStatus, OperationSuccessful, OperationFailed)
	if s.FailAt != nil {
		oneOf("failAt.status", s.FailAt.Status, DataException, CardProdException)
		oneOf("failAt.operationStatus", s.FailAt.OperationStatus, OperationFailed, OperationPending)
	}
	atLeast("stepInterval", s.StepInterval, Duration(time.Millisecond))
	atLeast("statusLag", s.StatusLag, 0)
	atLeast("answerDelay", s.AnswerDelay, 0)
	atLeast("changeDelay", s.ChangeDelay, 0)
	atLeast("retryBackoff", s.RetryBackoff, Duration(time.Millisecond))
	atLeast("tokenLifetime", s.TokenLifetime, Duration(time.Second))
	if s.Faults != nil {
		faults = append(faults, s.Faults.wrong())
	}
	if slices.Contains(s.CarrierStatuses, "") || slices.Contains(s.CardOperations, "") {
		faults = append(faults, errors.New("carrierStatuses and cardOperations: must not be empty"))
	}
	if s.MaxPerCall < 1 {
		faults = append(faults, errors.New("maxPerCall: must be at least 1"))
	}
	return errors.Join(faults...)
}

func defaultTo[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}
