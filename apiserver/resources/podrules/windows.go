package podrules

import (
	"fmt"
	"regexp"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Limits of Windows names. Sources: "Naming conventions in Active Directory" and
// the group managed service account pages of Microsoft's documentation.
const (
	maxCredentialSpecKiB = 64
	maxWindowsDomain     = 256 // exclusive
	maxWindowsUser       = 104
)

var (
	controlChars  = regexp.MustCompile(`[[:cntrl:]]`)
	netBIOSName   = regexp.MustCompile(`^[^\\/:*?"<>|.][^\\/:*?"<>|]{0,14}$`)
	windowsDNS    = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?(\.[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)*$`)
	dotsAndSpaces = regexp.MustCompile(`^[. ]+$`)
)

const badUserChars = `"/\:;|=,+*?<>@[]`

func (r *specRules) windows(w *corev1.WindowsSecurityContextOptions, p *field.Path) {
	if w == nil {
		return
	}
	if w.GMSACredentialSpecName != nil {
		r.Subdomain(p.Child("gmsaCredentialSpecName"), *w.GMSACredentialSpecName)
	}
	if s := w.GMSACredentialSpec; s != nil {
		at := p.Child("gmsaCredentialSpec")
		if *s == "" {
			r.Invalid(at, *s, "gmsaCredentialSpec cannot be an empty string")
		} else if len(*s) > maxCredentialSpecKiB<<10 {
			r.Invalid(at, *s, fmt.Sprintf("gmsaCredentialSpec size must be under %d KiB", maxCredentialSpecKiB))
		}
	}
	if w.RunAsUserName != nil {
		r.windowsUser(*w.RunAsUserName, p.Child("runAsUserName"))
	}
}

// windowsUser is USER or DOMAIN\USER.
func (r *specRules) windowsUser(name string, p *field.Path) {
	bad := func(why string) { r.Invalid(p, name, "runAsUserName"+why) }
	domain, user, qualified := strings.Cut(name, `\`)
	switch {
	case name == "":
		bad(" cannot be an empty string")
		return
	case controlChars.MatchString(name):
		bad(" cannot contain control characters")
		return
	case strings.Contains(user, `\`):
		bad(" cannot contain more than one backslash")
		return
	case !qualified:
		domain, user = "", name
	}
	if len(domain) >= maxWindowsDomain {
		bad(fmt.Sprintf("'s Domain length must be under %d characters", maxWindowsDomain))
	}
	if qualified && !netBIOSName.MatchString(domain) && !windowsDNS.MatchString(domain) {
		bad("'s Domain doesn't match the NetBios nor the DNS format")
	}
	if user == "" {
		bad("'s User cannot be empty")
	} else if len(user) > maxWindowsUser {
		bad(fmt.Sprintf("'s User length must not be longer than %d characters", maxWindowsUser))
	}
	if dotsAndSpaces.MatchString(user) {
		bad("'s User cannot contain only periods or spaces")
	}
	if strings.ContainsAny(user, badUserChars) {
		bad("'s User cannot contain the following characters: " + badUserChars)
	}
}

// validateHostProcess: either all containers are processes of the Windows host, on its network, or none is.
func (r *specRules) validateHostProcess(p *field.Path) {
	var whole *bool
	if c := r.spec.SecurityContext; c != nil && c.WindowsOptions != nil {
		whole = c.WindowsOptions.HostProcess
	}
	all, host := 0, 0
	eachContainer(r.spec, p, func(c *corev1.Container, at *field.Path) {
		all++
		is := whole
		if s := c.SecurityContext; s != nil && s.WindowsOptions != nil && s.WindowsOptions.HostProcess != nil {
			is = s.WindowsOptions.HostProcess
			if whole != nil && *whole != *is {
				r.Invalid(at.Child("securityContext", "windowsOptions", "hostProcess"), *is,
					fmt.Sprintf("pod hostProcess value must be identical if both are specified, was %v", *whole))
			}
		}
		if is != nil && *is {
			host++
		}
	})
	if host == 0 {
		return
	}
	if host != all {
		r.Invalid(p, "", "If pod contains any hostProcess containers then all containers must be HostProcess containers")
	}
	if !r.spec.HostNetwork {
		r.Invalid(p.Child("hostNetwork"), false, "hostNetwork must be true if pod contains any hostProcess containers")
	}
}
