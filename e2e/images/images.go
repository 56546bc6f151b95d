// Package images builds the images that the end-to-end tests run, without a registry:
// the test program (static Go, testprogram/) and Debian's static busybox.
//
// Main call: Archive.
package images

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/keelson/keelson/deploy/images"
)

// The references; their pull policy is IfNotPresent as they have a tag other than latest.
const (
	Test    = "keelson.local/test:1"
	Test2   = "keelson.local/test:2" // the same under another name: for roll-outs
	Busybox = "keelson.local/busybox:1"
)

// applets are linked to busybox where users look for them.
var applets = strings.Fields(`sh ls cat echo sleep true false tar cp mv rm mkdir rmdir touch id ps kill env printenv
 head tail grep sed wc vi stty tty hostname nslookup wget nc ping date seq sort uniq find stat df mount umount chmod chown
 ln od dd expr test [ basename dirname readlink realpath xargs awk tr cut tee top uname which whoami yes sync md5sum sha256sum ip`)

// Archive writes one archive with all images into dir and returns its path.
func Archive(ctx context.Context, dir string) (string, error) {
	program := filepath.Join(dir, "testprogram")
	cmd := exec.CommandContext(ctx, "go", "build", "-ldflags=-s -w", "-o", program, "github.com/keelson/keelson/e2e/images/testprogram")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the test program: %w: %s", err, out)
	}
	box, err := staticBusybox()
	if err != nil {
		return "", err
	}
	passwd := images.File{Path: "/etc/passwd", Text: "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"}
	group := images.File{Path: "/etc/group", Text: "root:x:0:\nnobody:x:65534:\n"}
	boxFiles := []images.File{passwd, group, {Path: "/bin/busybox", From: box}}
	for _, a := range applets {
		boxFiles = append(boxFiles, images.File{Path: "/bin/" + a, Link: "busybox"})
	}
	path := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	// The test image also holds a shell: tests look around in it.
	testFiles := append([]images.File{{Path: "/testprogram", From: program}}, boxFiles...)
	test := images.Spec{Name: Test, Files: testFiles, Dirs: []string{"/tmp"}, Entrypoint: []string{"/testprogram"}, Cmd: []string{"serve"}, Env: path}
	test2 := test
	test2.Name = Test2
	test2.Env = append([]string{"VERSION=2"}, path...)
	file := filepath.Join(dir, "images.tar")
	return file, images.Build(file, test, test2,
		images.Spec{Name: Busybox, Files: boxFiles, Dirs: []string{"/tmp", "/root"}, Cmd: []string{"sh"}, Env: path})
}

// staticBusybox finds a busybox that needs no libraries.
func staticBusybox() (string, error) {
	for _, p := range []string{"/bin/busybox", "/usr/bin/busybox"} {
		b, err := os.ReadFile(p)
		if err != nil {
			continue
		}
		if !strings.Contains(string(b[:min(len(b), 4096)]), "ld-linux") {
			return p, nil
		}
	}
	return "", fmt.Errorf("no static busybox here: install Debian's busybox-static")
}
