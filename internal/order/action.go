package order

import (
	"fmt"
	"time"
	"unicode"
)

// These read what people and core banking send along with an action, as strictly
// as an order: every fault is told, and a card number found, before anything is done.

// DecodePause reads why a lane is paused.
func DecodePause(text []byte, rules *Rules) (reason string, _ Faults) {
	faults := decodeAction(text, rules, "a pause", func(root *object) { reason = root.need("reason", visibleText) })
	return reason, faults
}

// DecodeHold reads why an order is held, which need not be said.
func DecodeHold(text []byte, rules *Rules) (reason string, _ Faults) {
	faults := decodeAction(text, rules, "a hold", func(root *object) { reason = root.text("reason", actionReason) })
	return reason, faults
}

// DecodeRelease reads why a held order is released, and why a second card is wanted.
func DecodeRelease(text []byte, rules *Rules) (reason, override string, _ Faults) {
	faults := decodeAction(text, rules, "a release", func(root *object) {
		reason = root.text("reason", actionReason)
		override = decodeOverride(root, "a release")
	})
	return reason, override, faults
}

// DecodeNote reads what somebody writes about an order.
func DecodeNote(text []byte, rules *Rules) (note string, _ Faults) {
	faults := decodeAction(text, rules, "a note", func(root *object) { note = root.need("text", noteText) })
	return note, faults
}

// DecodeClear reads the note with which an attention is cleared.
func DecodeClear(text []byte, rules *Rules) (note string, _ Faults) {
	faults := decodeAction(text, rules, "a clearance", func(root *object) { note = root.need("note", noteText) })
	return note, faults
}

// DecodeRetry reads what a retry of an order may bring: another JWE in place of the
// first one, and why a second card is wanted.
func DecodeRetry(text []byte, rules *Rules) (jwe, override string, _ Faults) {
	faults := decodeAction(text, rules, "a retry", func(root *object) {
		jwe = root.text("encryptedData", encryptedData)
		override = decodeOverride(root, "a retry")
	})
	return jwe, override, faults
}

// Replay is which notifications are to be applied again.
type Replay struct {
	From, To time.Time // of when they came
	Outcome  string    // what became of them, "" for all
	Cursor   string    // where to go on
}

// ReplayOutcomes are what may have become of a notification.
var ReplayOutcomes = []string{"applied", "parked", "unapplied", "ignored", "foreign"}

// DecodeReplay reads which notifications are to be applied again.
func DecodeReplay(text []byte, rules *Rules) (r Replay, _ Faults) {
	faults := decodeAction(text, rules, "a replay", func(root *object) {
		r.From, _ = time.Parse(time.RFC3339, root.need("from", instant)) // both were checked
		r.To, _ = time.Parse(time.RFC3339, root.need("to", instant))
		r.Outcome, r.Cursor = root.text("outcome", oneOf(ReplayOutcomes...)), root.text("cursor", id(64))
	})
	if len(faults) == 0 && !r.To.After(r.From) {
		faults = append(faults, Fault{Pointer: "/to", Code: CodeInvalidValue, Detail: "must be later than from"})
	}
	return r, faults
}

// DecodeNothing reads the body of an action that has no members.
func DecodeNothing(text []byte, rules *Rules) Faults {
	return decodeAction(text, rules, "this call", func(*object) {})
}

func decodeAction(text []byte, rules *Rules, what string, read func(root *object)) Faults {
	d := newDocument(text, rules)
	defer d.release()
	if root, ok := d.root(); ok {
		read(&root)
		root.closeAs(what)
	}
	return d.faults
}

func decodeOverride(root *object, what string) (reason string) {
	if o, ok := root.object("duplicateOverride"); ok {
		reason = o.need("reason", overrideReason)
		o.closeAs(what)
	}
	return reason
}

// These are texts that are shown to others as they are: one that hides or turns
// around what stands beside it is refused.
var (
	visibleText  = visible(200)
	actionReason = visible(256)
	noteText     = visible(2000)
)

func visible(limit int) textRule {
	bounds := text(limit)
	return textRule{free: true, check: func(s string) (string, string) {
		position := 0
		for _, r := range s {
			if position++; !unicode.IsGraphic(r) {
				return CodeInvalidCharacter, fmt.Sprintf("has a character that cannot be seen at position %d", position)
			}
		}
		return bounds.check(s)
	}}
}
