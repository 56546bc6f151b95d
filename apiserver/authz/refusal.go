package authz

import (
	"fmt"
	"strings"
)

// Refusal is the error of somebody who may not do what it asks for.
type Refusal struct {
	Of     Attributes
	Reason string // the authorizer's; may be empty
}

// html keeps a browser from taking for markup what a client has sent.
var html = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;")

// Error has upstream's words, which clients show and scripts read.
func (r *Refusal) Error() string {
	a := &r.Of
	text := fmt.Sprintf("User %q cannot %s path %q", a.User.Name, a.Verb, a.Path)
	if a.Resource {
		what := a.Plural
		if a.Subresource != "" {
			what += "/" + a.Subresource
		}
		text = fmt.Sprintf("User %q cannot %s resource %q in API group %q", a.User.Name, a.Verb, what, a.Group)
		if a.Namespace != "" {
			text += fmt.Sprintf(" in the namespace %q", a.Namespace)
		} else {
			text += " at the cluster scope"
		}
	}
	text = html.Replace(text)
	if r.Reason != "" {
		text += ": " + r.Reason
	}
	return text
}
